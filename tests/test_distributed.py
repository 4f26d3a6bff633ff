"""Two processes with half of the batch each, compared with one process with the whole batch."""

import pytest
import torch
import torch.multiprocessing as processes
from torch import distributed

from showface.nn import DisentangledMemory

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
