"""The settings of a resumed run, and the lock on its folder."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from showface import MDRNets
from showface.training import Trainer, load_config, resumed_config
from showface.training.lock import lock_folder

from support.networks import TINY
from support.runs import entries, small, weights

# Takes the lock as another trainer does, without loading torch, and keeps it until it is killed.
HOLDER = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1] + "/.lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
os.write(handle, f"process {os.getpid()} on here".encode())
print("locked", flush=True)
time.sleep(100)
"""


@pytest.fixture
def run(faces, tmp_path) -> Path:
    """A run of two steps whose settings are not the defaults."""
    out = tmp_path / "run"
    Trainer(small(faces, "steps=2", "log_every=1", "seed=7"), out).run()
    return out


def test_the_command_goes_on_with_the_runs_own_settings(showface, faces, run):
    before = (run / "config.yaml").read_bytes()
    code, said, error = showface("train", "--data", faces, "--out", run, "--resume")
    assert code == 0, error
    assert "resumed after step 2" in said
    assert "changed" not in said
    assert (run / "config.yaml").read_bytes() == before


def test_changed_settings_are_told_and_recorded(showface, faces, run, tmp_path):
    file = tmp_path / "more.yaml"
    file.write_text("steps: 3\nloss: {hole: 4}\nlr: 0.1\n")
    code, said, error = showface(
        "train", "--out", run, "--resume", "--config", file, "lr=0.01", "batch=4", "seed=8", "data.size=48"
    )
    assert code == 0, error
    said = " ".join(said.split())
    for line in (
        "changed after step 2: steps from 2 to 3 (the learning rate falls to 0 at step 3, not 2)",
        "batch from 2 to 4 (4 images per step, not 2; the run goes on at image 8 of the shuffled stream, not 4, "
        "so the images between them are left out)",
        "seed from 7 to 8 (another order of the images, other crops and other holes from here on; the weights stay)",
        "data.size from 32 to 48 (images of another size from here on; the weights stay)",
        "loss.hole from 6.0 to 4.0 (used from here on)",
        "lr from 0.0005 to 0.01 (another learning rate from here on)",
    ):
        assert line in said
    assert entries(run)[-1]["step"] == 3
    config = load_config(run / "config.yaml")
    assert (config.steps, config.batch, config.lr, config.loss.hole, config.model.channels) == (3, 4, 0.01, 4.0, 8)
    assert "# after step 2: batch from 2 to 4\n" in (run / "config.yaml").read_text()
    showface("train", "--out", run, "--resume", "steps=4")
    text = (run / "config.yaml").read_text()
    assert "# after step 2: batch from 2 to 4\n" in text
    assert "# after step 3: steps from 3 to 4\n" in text


def test_a_setting_that_does_not_fit_the_checkpoint_is_named(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"another system or configuration .*changed since: model\.channels from 8 to 16"
    ):
        Trainer(resumed_config(run, overrides=["model.channels=16", "steps=4"]), run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


@pytest.mark.parametrize("left", [None, ""])
def test_a_run_without_its_settings(run, tmp_path, left):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").unlink()
    if left is not None:
        (run / "config.yaml").write_text(left)
    with pytest.raises(
        FileNotFoundError, match=r"config\.yaml is (missing|empty): give the settings of the run with --con"
    ):
        resumed_config(run)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.warns(UserWarning, match="the settings are the defaults and those of"):
        assert resumed_config(run, tmp_path / "run.yaml") == load_config(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError, match="nothing to resume: no checkpoint in"):
        resumed_config(tmp_path / "nowhere")


def test_images_that_came_or_went_are_told(faces, run):
    next(faces.iterdir()).unlink()
    with pytest.warns(UserWarning, match="there were 3 images before the stop, and now 2: their order is another one"):
        Trainer(resumed_config(run), run, resume=True)


def test_the_model_that_a_run_started_from_may_be_gone(faces, tmp_path):
    MDRNets(TINY).save_pretrained(tmp_path / "start")
    Trainer(small(faces, f"init={tmp_path}/start", "steps=1"), tmp_path / "tuned").run()
    shutil.rmtree(tmp_path / "start")
    Trainer(resumed_config(tmp_path / "tuned", overrides=["steps=2"]), tmp_path / "tuned", resume=True).run()


def test_a_changed_weight_decay_is_used(run):
    trainer = Trainer(resumed_config(run, overrides=["weight_decay=0.5"]), run, resume=True)
    assert [group["weight_decay"] for group in trainer.optimisers["model"].param_groups] == [0.5]


def test_a_model_that_a_kill_left_behind_is_written_again(run):
    before = (run / "model" / "model.safetensors").read_bytes()
    (run / "model" / "model.safetensors").write_bytes(b"of an older step")
    Trainer(resumed_config(run), run, resume=True).run()
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_temporary_files_of_a_killed_run_are_removed(run):
    names = ["checkpoints/.step-00000003-0123abcd.pt", "model/.model-0123abcd.safetensors", ".config-0123abcd.yaml"]
    for name in [*names, "model/.tmpAbC123"]:
        (run / name).write_bytes(b"half")
    Trainer(resumed_config(run), run, resume=True).run()
    assert not list(run.rglob(".*"))


def test_one_trainer_per_folder(faces, run):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"locked\n"
        before = (run / "config.yaml").read_bytes()
        for resume in (True, False):
            with pytest.raises(BlockingIOError, match=f"run is in use by process {holder.pid} on here, which trains"):
                Trainer(small(faces, "steps=4"), run, resume=resume)
        assert (run / "config.yaml").read_bytes() == before
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    trainer = Trainer(resumed_config(run, overrides=["steps=3"]), run, resume=True)
    assert f"process {os.getpid()} on " in (run / ".lock").read_text()
    trainer.run()
    assert not (run / ".lock").exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """A data worker can outlive a killed trainer for some seconds."""
    lock = lock_folder(tmp_path)
    assert lock_folder(tmp_path) is lock  # one process may have several trainers
    # The child tells when it runs, and then lives until the parent closes its end of the other pipe or dies.
    (ready, tell), (wait, release) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        os.close(lock.handle)  # as the kernel does when the process is killed
        lock.handle = -1
        with (tmp_path / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for end in (ready, tell, wait, release):
            os.close(end)
        os.waitpid(child, 0)


def test_two_trainers_in_one_process_share_the_folder(faces, run):
    """Scripts build a second trainer beside the first one."""
    first = Trainer(resumed_config(run, overrides=["steps=3"]), run, resume=True)
    Trainer(resumed_config(run, overrides=["steps=3"]), run, resume=True).run()
    assert (run / ".lock").exists()
    first.run()
    assert all(torch.isfinite(x).all() for x in weights(run).values())
