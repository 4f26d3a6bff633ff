"""memory_read and memory_write compared with alternatives in PyTorch: `pytest benchmarks/test_memory.py`.

A group is a shape and a mode. All implementations of a group run in turns on the same tensors, after their results were
compared with the float64 definition.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from interleaved import CLOCK, Work, is_right, report
from measure import DEVICE, Run
from torch import Tensor

from showface import ops
from showface.ops import definitions
from showface.ops.dispatch import BACKENDS

TEMPERATURE, RATE = 16.0, 0.05
# tokens, regions, slots, channels: the regions of 16 faces, and the positions of 4 feature maps
SHAPES = {"regions": (304, 19, 256, 256), "pixels": (16384, 19, 256, 128)}
MODES = ("read", "read and backward", "write")
# Relative areas of a face's regions, from hair and skin to rare ones.
AREAS = (30, 25, 2, 0, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6, 0.5, 0.5, 0.6, 28, 1, 0, 0.4, 6, 4)


def gather_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """A copy of a token's block for each token, then batched products."""
    return torch.bmm(_gather_address(latent, memory, region)[:, None], memory[region])[:, 0]


def _gather_address(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    cosine = torch.bmm(definitions.unit(memory)[region], definitions.unit(latent)[..., None])[..., 0]
    return torch.softmax(TEMPERATURE * cosine, dim=-1)


def _blocks(latent: Tensor, memory: Tensor, region: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each block: its index, its tokens and their addresses."""
    for k, block in enumerate(memory):
        rows = (region == k).nonzero().squeeze(1)
        cosine = definitions.unit(latent[rows]) @ definitions.unit(block).T
        yield k, rows, torch.softmax(TEMPERATURE * cosine, dim=-1)


def batched_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """One batched product. The tokens must be all regions of the first face, then all of the second, and so on."""
    return torch.einsum("bks,ksc->bkc", _batched_address(latent, memory), memory).flatten(0, 1)


def _batched_address(latent: Tensor, memory: Tensor) -> Tensor:
    faces = definitions.unit(latent).unflatten(0, (-1, len(memory)))
    return torch.softmax(TEMPERATURE * torch.einsum("bkc,ksc->bks", faces, definitions.unit(memory)), dim=-1)


def dense_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """One product with all slots of all blocks, then a mask."""
    return _dense_address(latent, memory, region) @ memory.flatten(0, 1)


def _dense_address(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    cosine = definitions.unit(latent) @ definitions.unit(memory).flatten(0, 1).T
    block = torch.arange(len(memory), device=latent.device).repeat_interleave(memory.shape[1])
    return torch.softmax((TEMPERATURE * cosine).masked_fill(region[:, None] != block, -torch.inf), dim=-1)


def loop_read(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    """A loop over the blocks, without copies of them."""
    out = torch.zeros_like(latent)
    for k, rows, address in _blocks(latent, memory, region):
        out = out.index_put((rows,), address @ memory[k])
    return out


def blend(memory: Tensor, rho: Tensor, total: Tensor) -> Tensor:
    gain = 1 - (1 - RATE) ** rho
    return torch.lerp(memory, total / rho.clamp_min(1e-12)[..., None], gain[..., None])


def one_hot_write(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    address = _gather_address(latent, memory, region)
    member = torch.nn.functional.one_hot(region, len(memory)).to(latent.dtype)
    rho = torch.einsum("tk,ts->ks", member, address)
    return blend(memory, rho, torch.einsum("tk,ts,tc->ksc", member, address, latent))


def batched_write(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    address, faces = _batched_address(latent, memory), latent.unflatten(0, (-1, len(memory)))
    return blend(memory, address.sum(0), torch.einsum("bks,bkc->ksc", address, faces))


def dense_write(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    address = _dense_address(latent, memory, region)
    return blend(memory, address.sum(0).view(memory.shape[:2]), (address.T @ latent).view_as(memory))


def loop_write(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
    parts = [(address.sum(0), address.T @ latent[rows]) for _, rows, address in _blocks(latent, memory, region)]
    return blend(memory, *(torch.stack(sums) for sums in zip(*parts, strict=True)))


def ours(backend: str, write: bool) -> Callable[..., Tensor]:
    def read_or_write(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
        options: dict[str, Any] = {"temperature": TEMPERATURE, "backend": backend}
        if write:
            return ops.memory_write(latent, memory, region, rate=RATE, **options)[0]
        return ops.memory_read(latent, memory, region, **options)

    return read_or_write


def implementations(write: bool) -> dict[str, Callable[..., Tensor]]:
    """The peers, and our backends. For a write, the gather peer also makes one-hot vectors."""
    compilable = (
        {"gather": one_hot_write, "batched": batched_write, "dense": dense_write}
        if write
        else {"gather": gather_read, "batched": batched_read, "dense": dense_read}
    )
    peers = compilable | {"loop": loop_write if write else loop_read}
    peers |= {f"compiled {name}": torch.compile(run, dynamic=False) for name, run in compilable.items()}
    return peers | {f"showface {backend}": ours(backend, write) for backend in BACKENDS if backend != "reference"}


def work(shape: str, mode: str) -> Work:
    """Two products of each token with its block; four more for the backward. Latents and memory are read once."""
    tokens, regions, slots, channels = SHAPES[shape]
    product = 2.0 * tokens * slots * channels
    read = 4.0 * channels * (tokens + regions * slots)
    if mode == "read and backward":
        return Work(6 * product, 3 * read + 4.0 * 2 * tokens * channels)
    return Work(2 * product, read + 4 * channels * (tokens if mode == "read" else regions * slots))


def prepare(shape: str, mode: str) -> dict[str, Run]:
    """The implementations to time. They are compared with a float64 loop, which is compared with the definition."""
    torch.compiler.reset()  # so that each size is compiled separately
    tokens, regions, slots, channels = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    latent, grad = (torch.randn(tokens, channels, generator=generator) for _ in range(2))
    memory = torch.randn(regions, slots, channels, generator=generator)
    if shape == "regions":
        region = torch.arange(tokens) % regions
    else:
        region = torch.multinomial(torch.tensor(AREAS), tokens, replacement=True, generator=generator)
    write, backward = mode == "write", mode == "read and backward"

    def run(implementation: Callable[..., Tensor], tensors: list[Tensor], region: Tensor, grad: Tensor) -> list[Tensor]:
        out = implementation(*tensors, region)
        return [out, *torch.autograd.grad(out, tensors, grad)] if backward else [out]

    wide = [x.double().requires_grad_(backward) for x in (latent, memory)]
    expected = run(loop_write if write else loop_read, wide, region, grad.double())
    few = slice(0, 300)
    if write:
        exact = definitions.memory_write(wide[0][few], wide[1], region[few], TEMPERATURE, RATE)[0]
        torch.testing.assert_close(loop_write(wide[0][few], wide[1], region[few]), exact)
    else:
        torch.testing.assert_close(
            expected[0][few], definitions.memory_read(wide[0][few], wide[1], region[few], TEMPERATURE)
        )

    arguments = [x.to(DEVICE).requires_grad_(backward) for x in (latent, memory)], region.to(DEVICE), grad.to(DEVICE)
    runs = {}
    for name, implementation in implementations(write).items():
        if why_left_out(name, shape, mode):
            continue
        if is_right(name, partial(check, run(implementation, *arguments), expected, memory if write else None)):
            runs[name] = partial(run, implementation, *arguments)
    return runs


def check(results: list[Tensor], expected: list[Tensor], memory: Tensor | None) -> None:
    """Raise AssertionError unless the results match the float64 definition. For a write, the changes must match."""
    for result, exact in zip(results, expected, strict=True):
        got, wanted = result.detach().cpu().double(), exact.detach()
        if memory is None:
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        else:
            error = (got - wanted).norm() / (wanted - memory.double()).norm()
            assert error < 1e-4, f"off by {error:.2%} of the change"


def why_left_out(name: str, shape: str, mode: str) -> str | None:
    if name.endswith("gather") and shape == "pixels" and DEVICE == "cpu":
        return "it would copy gigabytes"
    if name.endswith("batched") and shape == "pixels":
        return "its tokens are not the regions of one face after another"
    if not name.startswith("showface"):
        return None
    return ops.why_not("memory_write" if mode == "write" else "memory_read", name.split()[1], DEVICE)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", implementations(False))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_memory(benchmark, shape: str, mode: str, name: str) -> None:
    reason = why_left_out(name, shape, mode)
    if reason:
        pytest.skip(reason)
    sizes = dict(zip(("tokens", "regions", "slots", "channels"), SHAPES[shape], strict=True))
    case = {"op": "memory", "shape": shape, **sizes, "dtype": "float32", "mode": mode}
    report(benchmark, case, name, partial(prepare, shape, mode), work=work(shape, mode), rounds=15)
