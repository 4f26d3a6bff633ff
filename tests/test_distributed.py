"""Several processes: each with its part of the batch, compared with one process; and one of them is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from torch import distributed

from showface.nn import DisentangledMemory
from showface.training.checkpoint import list_checkpoints

from support.runs import SMALL, assert_same_run, compare, entries, free_port, weights

REGIONS, SLOTS, CHANNELS = 5, 4, 6
pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo"
)


def memory_and_batches() -> tuple[DisentangledMemory, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A memory with some idle slots, and batches of four images, some without all regions."""
    torch.manual_seed(0)
    memory = DisentangledMemory(CHANNELS, REGIONS, SLOTS, patience=2, reseed_below=0.6)
    memory.idle.random_(0, 3)
    batches = []
    for step in range(4):
        labels = torch.randint(step % 2, REGIONS - step, (4, 8, 8))
        parsing = torch.nn.functional.one_hot(labels, REGIONS).movedim(-1, 1).float()
        batches.append((torch.randn(4, CHANNELS, 8, 8), parsing))
    return memory, batches


def write_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    memory, batches = memory_and_batches()
    for features, parsing in batches:
        memory.write(features[2 * rank :][:2], parsing[2 * rank :][:2])
    torch.save(memory.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_halves_of_a_batch_make_the_memory_of_the_whole(tmp_path):
    processes.spawn(write_half, args=(str(tmp_path),), nprocs=2)
    memory, batches = memory_and_batches()
    before = memory.idle.clone()
    for features, parsing in batches:
        memory.write(features, parsing)
    assert ((memory.idle == 0) & (before > 0)).any()
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, whole in memory.state_dict().items():
        torch.testing.assert_close(halves[0][name], whole)
        assert torch.equal(halves[0][name], halves[1][name])


TRAIN = "import torch; torch.set_num_threads(1); from showface.cli import main; main()"


def launch(faces: Path, out: Path, count: int, *more: str) -> list[subprocess.Popen]:
    """Start a training of `count` processes, as a launcher on several machines does: none watches over the others."""
    settings = [*SMALL, f"batch={count}", "save_every=2", "log_every=1", *more]
    command = [sys.executable, "-c", TRAIN, "train", "--data", str(faces), "--out", str(out), *settings]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            command,
            env=os.environ | places | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def test_one_process_validates_for_all(faces, tmp_path):
    """The losses and weights are those of a run without validation."""
    for name, options in (("with", ["--validation", str(faces)]), ("without", [])):
        for process in launch(faces, tmp_path / name, 2, "steps=2", "save_every=1", *options):
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    scored, plain = (entries(tmp_path / name) for name in ("with", "without"))
    assert [entry["hole"] for entry in scored] == [entry["hole"] for entry in plain]
    assert all(0 < entry["validation_hole"] < 2 for entry in scored)
    compare(weights(tmp_path / "with"), weights(tmp_path / "without"), "")


@pytest.mark.long
@pytest.mark.parametrize(("count", "lost"), [(2, 1), (2, 0)])
def test_a_killed_process_ends_the_others_which_name_it(faces, tmp_path, count, lost):
    for process in launch(faces, tmp_path / "whole", count, "steps=12"):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    out = tmp_path / "run"
    running = launch(faces, out, count, "steps=12")
    while running[0].poll() is None and not list_checkpoints(out / "checkpoints"):
        time.sleep(0.01)
    running[lost].send_signal(signal.SIGKILL)
    for rank, process in enumerate(running):
        said, _ = process.communicate(timeout=60)
        if rank != lost:
            assert process.returncode == 1, said
            words = " ".join(said.split())
            assert (
                f"error: rank {lost} of the {count} processes is gone, or can't be reached; go on with --resume"
                in words
            )
    for process in launch(faces, out, count, "steps=12", "--resume"):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert_same_run(tmp_path / "whole", out)
