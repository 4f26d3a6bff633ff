"""The cases of the memory: their tensors, their minimum work, and the implementations with right results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import memory_peers
import torch
from interleaved import Checked, Work, check_all, is_ours
from measure import DEVICE
from memory_peers import TEMPERATURE, loop_read, loop_write, peers
from torch import Tensor

from showface import ops
from showface.ops import definitions
from showface.ops.dispatch import BACKENDS

MODES = ("read", "read and backward", "write")
# Relative areas of a face's regions, from hair and skin to rare ones.
AREAS = (30, 25, 2, 0, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6, 0.5, 0.5, 0.6, 28, 1, 0, 0.4, 6, 4)


@dataclass(frozen=True)
class Problem:
    shape: str  # "regions" of faces, one after another, or "pixels" with regions of very different sizes
    tokens: int
    regions: int
    slots: int
    channels: int
    dtype: str = "float32"
    mode: str = "read"


# The regions of 16 faces, and the positions of 4 feature maps.
SHAPES = (Problem("regions", 304, 19, 256, 256), Problem("pixels", 16384, 19, 256, 128))


def rate(dtype: str) -> float:
    """The rate of a write. In half precision the usual one changes less than rounding does, so it is larger there."""
    return 0.05 if dtype == "float32" else 0.999


def ours(backend: str, mode: str, dtype: str) -> Callable[..., Tensor]:
    def read_or_write(latent: Tensor, memory: Tensor, region: Tensor) -> Tensor:
        options: dict[str, Any] = {"temperature": TEMPERATURE, "backend": backend}
        if mode == "write":
            return ops.memory_write(latent, memory, region, rate=rate(dtype), **options)[0]
        return ops.memory_read(latent, memory, region, **options)

    return read_or_write


def implementations(mode: str, dtype: str) -> dict[str, Callable[..., Tensor]]:
    """The peers, and our backends."""
    found = peers(mode == "write")
    if mode == "write":
        found = {name: partial(run, rate=rate(dtype)) for name, run in found.items()}
    return found | {f"showface {backend}": ours(backend, mode, dtype) for backend in BACKENDS if backend != "reference"}


def work(problem: Problem) -> Work:
    """Two products of each token with its block; four more for the backward. Latents and memory are read once."""
    product = 2.0 * problem.tokens * problem.slots * problem.channels
    latent = problem.tokens * problem.channels * getattr(torch, problem.dtype).itemsize
    memory = problem.regions * problem.slots * problem.channels * getattr(torch, problem.dtype).itemsize
    if problem.mode == "read and backward":
        return Work(6 * product, 3.0 * (latent + memory) + 2.0 * latent)
    return Work(2 * product, float(latent + memory + (latent if problem.mode == "read" else memory)))


def make(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, memory, regions and an upstream gradient."""
    dtype, generator = getattr(torch, problem.dtype), torch.Generator().manual_seed(0)
    latent, grad = (torch.randn(problem.tokens, problem.channels, generator=generator) for _ in range(2))
    memory = torch.randn(problem.regions, problem.slots, problem.channels, generator=generator)
    if problem.shape == "regions":
        region = torch.arange(problem.tokens) % problem.regions
    else:
        areas = torch.tensor(AREAS[: problem.regions])
        region = torch.multinomial(areas, problem.tokens, replacement=True, generator=generator)
    return *(x.to(dtype).to(DEVICE) for x in (latent, memory)), region.to(DEVICE), grad.to(dtype).to(DEVICE)


def prepare(problem: Problem, names: tuple[str, ...], *, keep_going: bool = False) -> Checked:
    """The implementations to time, after their results and gradients were compared with a float64 loop.

    The loop is compared with the definition.

    Args:
        names: the implementations. Those that are known not to run here must be left out, see `why_left_out`.
        keep_going: as in `check_all`.
    """
    torch.compiler.reset()  # so that each size is compiled separately
    write, backward = problem.mode == "write", problem.mode == "read and backward"
    latent, memory, region, grad = make(problem)

    def run(implementation: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
        out = implementation(*tensors, region)
        return [out, *torch.autograd.grad(out, tensors, grad)] if backward else [out]

    wide = [x.double().requires_grad_(backward) for x in (latent, memory)]
    loop: Callable[..., Tensor] = partial(loop_write, rate=rate(problem.dtype)) if write else loop_read
    expected = [x.detach() for x in run(loop, wide, grad.double())]
    few = slice(0, 300)
    some = wide[0][few].detach(), wide[1].detach(), region[few]
    if write:
        exact = definitions.memory_write(*some, TEMPERATURE, rate(problem.dtype))[0]
    else:
        exact = definitions.memory_read(*some, TEMPERATURE)
    torch.testing.assert_close(loop(*some), exact)

    tensors = [x.requires_grad_(backward) for x in (latent, memory)]
    known = implementations(problem.mode, problem.dtype)
    runs = {name: partial(run, known[name], tensors, grad) for name in names}
    compare = partial(check, expected=expected, memory=memory.detach().double() if write else None)
    return check_all(runs, compare, keep_going=keep_going)


def check(results: list[Tensor], expected: list[Tensor], memory: Tensor | None) -> None:
    """Raise AssertionError unless the results match the float64 definition. For a write, the changes must match."""
    for result, wanted in zip(results, expected, strict=True):
        got, half = result.detach().double(), result.dtype != torch.float32
        if memory is None and not half:
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        else:
            error = ((got - wanted).norm() / (wanted if memory is None else wanted - memory).norm()).item()
            assert error < (0.03 if half else 1e-4), (
                f"off by {error:.2%} of the {'norm' if memory is None else 'change'}"
            )


def why_left_out(name: str, problem: Problem) -> str | None:
    if not is_ours(name):
        return memory_peers.why_not(name, problem.shape, problem.dtype)
    op = "memory_write" if problem.mode == "write" else "memory_read"
    return ops.why_not(op, name.split()[1], DEVICE, getattr(torch, problem.dtype))
