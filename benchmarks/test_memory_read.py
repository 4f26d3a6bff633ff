"""memory_read against what a user would write instead: `pytest benchmarks/test_memory_read.py`.

Each group is a shape; within it every implementation runs on the same tensors, after its result was compared with the
float64 definition.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from showface import ops
from showface.ops import definitions
from showface.ops.backends import BACKENDS

TEMPERATURE = 16.0
# tokens, regions, slots, channels: the parts of 16 faces, and the positions of 4 feature maps
SHAPES = {"regions": (304, 19, 256, 256), "pixels": (16384, 19, 64, 64)}


def eager_gather(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    return definitions.memory_read(latent, memory, region, TEMPERATURE)


def eager_loop(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """One block after another: no copy of a block for each token."""
    out = torch.zeros_like(latent)
    for k, block in enumerate(memory):
        rows = region == k
        cosine = definitions.unit(latent[rows]) @ definitions.unit(block).T
        out[rows] = torch.softmax(TEMPERATURE * cosine, dim=-1) @ block
    return out


def ours(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
        return ops.memory_read(latent, memory, region, temperature=TEMPERATURE, backend=backend)

    return run


IMPLEMENTATIONS = {"eager gather": eager_gather, "eager loop": eager_loop}
IMPLEMENTATIONS |= {f"showface {backend}": ours(backend) for backend in BACKENDS if backend != "reference"}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_read(benchmark, shape: str, name: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("showface"):
        reason = ops.why_not("memory_read", name.split()[1], device)
        if reason:
            pytest.skip(reason)
    tokens, regions, slots, channels = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(tokens, channels, generator=generator)
    memory = torch.randn(regions, slots, channels, generator=generator)
    region = torch.arange(tokens) * regions // tokens
    some = torch.arange(0, tokens, max(1, tokens // 300))
    expected = definitions.memory_read(latent[some].double(), memory.double(), region[some], TEMPERATURE)

    implementation = IMPLEMENTATIONS[name]
    arguments = (latent.to(device), memory.to(device), region.to(device))
    torch.testing.assert_close(implementation(*arguments)[some].cpu().double(), expected, rtol=1e-4, atol=1e-5)

    def run() -> None:
        implementation(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"memory_read {shape} {SHAPES[shape]} {device}"
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    benchmark.pedantic(run, rounds=15, warmup_rounds=3)
