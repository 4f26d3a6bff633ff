"""Interrupted runs: signals, a kill, a full disk, damaged checkpoints, missing data."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from showface.training import Trainer
from showface.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from showface.training.signals import SIGNALS, stop_on_signal

from support.runs import SMALL, assert_same_run, entries, small

ADVERSARIAL = ["loss.adversarial=0.1", "gan.channels=8", "gan.start=3", "data.workers=1"]


def command(faces: Path, out: Path, *more: str) -> list[str]:
    run = ["-c", "from showface.cli import main; main()", "train", "--data", str(faces), "--out", str(out)]
    return [sys.executable, *run, *(x for x in SMALL if not x.startswith("data.workers")), *ADVERSARIAL, *more]


@pytest.mark.parametrize(
    ("number", "system"),
    [(signal.SIGTERM, "mdrnets"), (signal.SIGINT, "pic"), (signal.SIGKILL, "pic")],  # PIC draws random numbers
)
def test_a_stopped_run_goes_on_as_if_it_never_was(faces, tmp_path, number, system):
    options = ["steps=24", "save_every=5", "log_every=1", f"system={system}", "baseline.channels=4"]
    subprocess.run(command(faces, tmp_path / "whole", *options), check=True, capture_output=True)

    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(faces, out, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and len(list_checkpoints(out / "checkpoints")) < 1:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does, also signal the data workers
    said, _ = process.communicate(timeout=60)
    stopped_at = load_checkpoint(out / "checkpoints")["step"]
    assert 5 <= stopped_at < 24, said
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        said = " ".join(said.split())
        assert f"stopped by {number.name} after step {stopped_at}, which is saved: go on with --resume" in said
    subprocess.run([*command(faces, out, *options), "--resume"], check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", out)


def raise_signals(*numbers: signal.Signals) -> signal.Signals | None:
    with stop_on_signal() as request:
        for number in numbers:
            signal.raise_signal(number)
        return request.by


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_scheduler_may_signal_twice(number):
    """A launcher forwards the signal that the scheduler has sent to each process already."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    assert raise_signals(number, number, signal.SIGTERM) == number
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_a_second_ctrl_c_stops_at_once():
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            raise_signals(first, signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert raise_signals(signal.SIGHUP) is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_damaged_checkpoint_is_left_out(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.arange(1000)}, keep=3)
    oldest, middle, newest = list_checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])  # cut short
    with pytest.warns(UserWarning, match=r"step-00000003\.pt is damaged and left out"):
        assert load_checkpoint(tmp_path)["step"] == 2
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 1  # inside the weights: torch alone would load it without an error
    middle.write_bytes(content)
    with pytest.warns(UserWarning, match="differs from its checksum"):
        assert load_checkpoint(tmp_path)["step"] == 1
    oldest.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"),
    ):
        load_checkpoint(tmp_path)


def test_a_changed_bit_is_noticed_or_harmless(tmp_path):
    """Checksums cover the tensors only. Damage elsewhere makes zipfile and torch raise many kinds of errors."""
    state = {"step": 2, "weights": torch.arange(100)}
    save_checkpoint(tmp_path, 1, {**state, "step": 1}, keep=2)
    content = save_checkpoint(tmp_path, 2, state, keep=2).read_bytes()
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (tmp_path / "step-00000002.pt").write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = load_checkpoint(tmp_path)
        assert loaded["step"] in (1, 2)
        assert torch.equal(loaded["weights"], state["weights"]), place


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on the file size stops a write half-way, as a full disk does."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from showface.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
save_checkpoint(folder, 1, {"step": 1}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_checkpoint(folder, 2, {"step": 2, "weights": torch.zeros(100_000)}, keep=1)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "OSError: can't write the checkpoint" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_a_run_tells_of_a_full_disk(faces, tmp_path, monkeypatch):
    trainer = Trainer(small(faces, "steps=4", "save_every=2"), tmp_path / "run")

    def fill_the_disk(state, file):
        if state["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(state, file)

    write = torch.save
    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match=r"can't write the checkpoint .*step-00000004\.pt: .*No space left"):
        trainer.run()
    monkeypatch.undo()
    resumed = Trainer(small(faces, "steps=4", "save_every=2"), tmp_path / "run", resume=True)
    assert resumed.step == 2
    resumed.run()


def test_a_vanished_image_is_replaced(faces, tmp_path):
    trainer = Trainer(small(faces, "steps=3"), tmp_path / "run")
    next(iter(sorted(faces.iterdir()))).unlink()
    with pytest.warns(UserWarning, match="another image replaces it"):
        trainer.run()
    assert entries(tmp_path / "run")[-1]["step"] == 3


def test_images_that_all_vanish_end_the_run(faces, tmp_path):
    trainer = Trainer(small(faces, "steps=3"), tmp_path / "run")
    for path in faces.iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="another"), pytest.raises(OSError, match="all 3 images are unreadable"):
        trainer.run()


def test_steps_that_are_done_again_are_told_once(faces, tmp_path):
    out = tmp_path / "run"
    Trainer(small(faces, "steps=2", "log_every=1", "save_every=2"), out).run()
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "total": 1.0}) + "\n" + '{"step": 4, "tot')
    Trainer(small(faces, "steps=4", "log_every=1", "save_every=2"), out, resume=True).run()
    assert [entry["step"] for entry in entries(out)] == [1, 2, 3, 4]
