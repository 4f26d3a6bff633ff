"""masked_correlation compared with alternatives in PyTorch: `pytest benchmarks/test_masked_correlation.py`.

A group is a kind of mask, a size, a hole ratio, a dtype and a mode. All implementations of a group run in turns on the
same tensors, after their results were compared with the float64 definition.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interleaved import CLOCK, Work, is_right, report
from measure import DEVICE, Run
from torch import Tensor

from showface import ops
from showface.data.masks import random_hole
from showface.ops import definitions
from showface.ops.dispatch import BACKENDS

TEMPERATURE = 16.0


@dataclass(frozen=True)
class Problem:
    mask: str = "strokes"
    tokens: int = 4096
    channels: int = 64
    hole: float = 0.3  # fraction of corrupted tokens
    batch: int = 4
    dtype: str = "float32"
    mode: str = "forward"


def problems() -> Iterator[Problem]:
    modes = "forward", "forward and backward"
    for mode in modes:
        for tokens in (1024, 4096):
            for channels in (64, 256):
                for hole in (0.1, 0.3, 0.5):
                    yield Problem(tokens=tokens, channels=channels, hole=hole, mode=mode)
        for hole in (0.1, 0.3, 0.5):
            yield Problem(mask="blob", hole=hole, mode=mode)
        # Vary one size at a time, for one image, to show how the cost grows.
        one = Problem(batch=1, mode=mode)
        yield one
        yield from (replace(one, tokens=tokens) for tokens in (256, 1024, 16384))
        yield from (replace(one, channels=channels) for channels in (32, 128, 256, 512))
        yield from (replace(one, hole=hole) for hole in (0.02, 0.1, 0.5, 0.7, 0.9))
        yield from (replace(one, batch=batch) for batch in (2, 8))
        for dtype in ("bfloat16",) if DEVICE == "cpu" else ("bfloat16", "float16"):
            yield from (Problem(channels=channels, dtype=dtype, mode=mode) for channels in (64, 256))


def eager(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    """All N x N correlations, masked."""
    score = TEMPERATURE * definitions.unit(query) @ definitions.unit(key).mT
    weight = torch.softmax(score.masked_fill(hole[:, None, :], -torch.inf), dim=-1)
    return (weight @ value) * hole[..., None]


def sdpa_with_mask(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    q, k, v = (x[:, None] for x in (definitions.unit(query), definitions.unit(key), value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=~hole[:, None, None, :], scale=TEMPERATURE)
    return out[:, 0] * hole[..., None]


def gather_then_sdpa(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
    """Attention of only the corrupted queries to only the known keys, image by image."""
    images = []
    for q, k, v, corrupted in zip(definitions.unit(query), definitions.unit(key), value, hole, strict=True):
        known = ~corrupted
        parts = (x[None, None] for x in (q[corrupted], k[known], v[known]))
        answer = F.scaled_dot_product_attention(*parts, scale=TEMPERATURE)[0, 0]
        images.append(torch.zeros_like(v).index_put((corrupted,), answer))
    return torch.stack(images)


def ours(backend: str) -> Callable[..., Tensor]:
    def run(query: Tensor, key: Tensor, value: Tensor, hole: Tensor) -> Tensor:
        return ops.masked_correlation(query, key, value, hole, temperature=TEMPERATURE, backend=backend)

    return run


PEERS = {
    "eager": eager,
    "compiled eager": torch.compile(eager, dynamic=False),
    "SDPA with a mask": sdpa_with_mask,
    "gather, then SDPA": gather_then_sdpa,
}
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


def prepare(problem: Problem) -> dict[str, Run]:
    """The implementations to time, after their results were compared with the float64 definition."""
    torch.compiler.reset()  # so that each size is compiled separately
    backward, dtype = problem.mode != "forward", getattr(torch, problem.dtype)
    generator = torch.Generator().manual_seed(0)
    shape = problem.batch, problem.tokens, problem.channels
    query, key, value, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    hole = make_hole(problem)
    wide = [x.double().requires_grad_(backward) for x in (query, key, value)]
    expected = [definitions.masked_correlation(*wide, hole, TEMPERATURE)]
    if backward:
        expected += torch.autograd.grad(expected[0], wide, grad.double())
    tensors = [x.to(DEVICE).requires_grad_(backward) for x in (query, key, value)]
    hole, grad = hole.to(DEVICE), grad.to(DEVICE)

    def run(implementation: Callable[..., Tensor]) -> list[Tensor]:
        out = implementation(*tensors, hole)
        return [out, *torch.autograd.grad(out, tensors, grad)] if backward else [out]

    runs = {}
    for name, implementation in IMPLEMENTATIONS.items():
        if why_left_out(name, problem):
            continue
        if is_right(name, partial(check, run(implementation), expected)):
            runs[name] = partial(run, implementation)
    return runs


def check(results: list[Tensor], expected: list[Tensor]) -> None:
    """Raise AssertionError unless the results match the float64 definition, up to the rounding of their dtype."""
    for result, wanted in zip(results, expected, strict=True):
        got = result.detach().cpu().double()
        if result.dtype == torch.float32:
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-4, atol=1e-4)
        else:  # the peers round all intermediate results, so single elements may be far off
            error = (got - wanted).norm() / wanted.norm()
            assert error < 0.03, f"off by {error:.1%} of the norm"


def why_left_out(name: str, problem: Problem) -> str | None:
    if not name.startswith("showface"):
        return None
    return ops.why_not("masked_correlation", name.split()[1], DEVICE, getattr(torch, problem.dtype))


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: "-".join(map(str, asdict(problem).values())))
def test_masked_correlation(benchmark, problem: Problem, name: str) -> None:
    reason = why_left_out(name, problem)
    if reason:
        pytest.skip(reason)
    report(
        benchmark,
        {"op": "masked_correlation", **asdict(problem)},
        name,
        partial(prepare, problem),
        work=work(problem),
        rounds=15 if problem.tokens < 2000 else 5,
    )
