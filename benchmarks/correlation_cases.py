"""The cases of `masked_correlation`: their tensors, their minimum work, and the implementations with right results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import correlation_peers
import numpy as np
import torch
from correlation_peers import PEERS, TEMPERATURE
from interleaved import Checked, Work, check_all, is_ours
from measure import DEVICE
from torch import Tensor

from showface import ops
from showface.data.masks import random_hole
from showface.ops import definitions
from showface.ops.dispatch import BACKENDS


@dataclass(frozen=True)
class Problem:
    mask: str = "strokes"
    tokens: int = 4096
    channels: int = 64
    hole: float = 0.3  # fraction of corrupted tokens
    batch: int = 4
    dtype: str = "float32"
    mode: str = "forward"


def ours(backend: str) -> Callable[..., Tensor]:
    def run(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
        return ops.masked_correlation(query, key, value, hole, temperature=TEMPERATURE, backend=backend)

    return run


IMPLEMENTATIONS = PEERS | {f"showface {backend}": ours(backend) for backend in BACKENDS if backend != "reference"}


def blob(batch: int, tokens: int, share: float) -> Tensor:
    """(batch, tokens) bool: a disc with this fraction of a square map, at another place in each image."""
    side = round(tokens**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    count = int(share * tokens)
    holes = []
    for image in range(batch):
        distance = (y - side * (0.4 + 0.05 * image)) ** 2 + (x - side * (0.6 - 0.05 * image)) ** 2
        holes.append(torch.zeros(tokens, dtype=torch.bool).index_fill(0, distance.flatten().argsort()[:count], True))
    return torch.stack(holes)


def strokes(batch: int, tokens: int, share: float) -> Tensor:
    """(batch, tokens) bool: free strokes and dabs, similar to NVIDIA's irregular masks."""
    side, rng = round(tokens**0.5), np.random.default_rng(0)
    holes = [random_hole(side, side, rng, ratio=(share, share), kind="strokes") for _ in range(batch)]
    return torch.from_numpy(np.stack(holes)).flatten(1)


MASKS = {"blob": blob, "strokes": strokes}


def make_hole(problem: Problem) -> Tensor:
    return MASKS[problem.mask](problem.batch, problem.tokens, problem.hole)


def work(problem: Problem) -> Work:
    """Two products over all pairs of a corrupted and a known token; four more for the backward."""
    hole = make_hole(problem)
    corrupted, known = hole.sum(1), (~hole).sum(1)
    forward = 2 * 2 * float((corrupted * known).sum()) * problem.channels
    row = problem.channels * getattr(torch, problem.dtype).itemsize
    read = float((corrupted + 2 * known).sum()) * row  # queries; keys and values
    written = problem.batch * problem.tokens * row
    if problem.mode == "forward":
        return Work(forward, read + written)
    return Work(3 * forward, 2 * read + float(corrupted.sum()) * row + 4 * written)


def prepare(problem: Problem, names: tuple[str, ...] = tuple(IMPLEMENTATIONS), *, keep_going: bool = False) -> Checked:
    """The implementations to time, after their results and gradients were compared with the float64 definition.

    Args:
        names: the implementations. Those that are known not to run here must be left out, see `why_left_out`.
        keep_going: as in `check_all`.
    """
    torch.compiler.reset()  # so that each size is compiled separately
    backward, dtype = problem.mode != "forward", getattr(torch, problem.dtype)
    generator = torch.Generator().manual_seed(0)
    shape = problem.batch, problem.tokens, problem.channels
    tensors = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for _ in range(4)]
    *tensors, grad = tensors
    hole = make_hole(problem).to(DEVICE)
    wide = [x.double().requires_grad_(backward) for x in tensors]
    expected = [definitions.masked_correlation(*wide, hole, TEMPERATURE)]
    if backward:
        expected += torch.autograd.grad(expected[0], wide, grad.double())
    for x in tensors:
        x.requires_grad_(backward)

    def run(implementation: Callable[..., Tensor]) -> list[Tensor]:
        out = implementation(*tensors, hole)
        return [out, *torch.autograd.grad(out, tensors, grad)] if backward else [out]

    runs = {name: partial(run, IMPLEMENTATIONS[name]) for name in names}
    return check_all(runs, partial(check, expected=[x.detach() for x in expected]), keep_going=keep_going)


def check(results: list[Tensor], expected: list[Tensor]) -> None:
    """Raise AssertionError unless the results match the float64 definition, up to the rounding of their dtype."""
    for result, wanted in zip(results, expected, strict=True):
        got = result.detach().double()
        if result.dtype == torch.float32:
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        else:  # the peers round all intermediate results, so single elements may be far off
            error = ((got - wanted).norm() / wanted.norm()).item()
            assert error < 0.03, f"off by {error:.1%} of the norm"


def why_left_out(name: str, problem: Problem) -> str | None:
    if not is_ours(name):
        return correlation_peers.why_not(name, problem.dtype, problem.channels)
    return ops.why_not("masked_correlation", name.split()[1], DEVICE, getattr(torch, problem.dtype))
