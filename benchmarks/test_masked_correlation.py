"""masked_correlation against what a user would write instead: `pytest benchmarks/test_masked_correlation.py`.

Each group is a kind of mask, a size, a share of corrupted tokens and a mode; within it every implementation runs on the
same tensors, in turns, after its results were compared with the float64 definition.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interleaved import CLOCK, Run, report
from torch import Tensor

from showface import ops
from showface.data.masks import random_hole
from showface.ops import definitions
from showface.ops.backends import BACKENDS

TEMPERATURE = 16.0
BATCH = 4
SIZES = [(1024, 64), (1024, 128), (1024, 256), (4096, 64), (4096, 128), (4096, 256)]  # tokens, channels
HOLES = [0.1, 0.3, 0.5]


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
    """The least work that existing parts allow: image by image, only corrupted queries and known keys."""
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


def blob(tokens: int, share: float) -> Tensor:
    """(BATCH, tokens) bool: in each image a disc of that share of a square map, elsewhere in each."""
    side = round(tokens**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    count = int(share * tokens)
    holes = []
    for image in range(BATCH):
        distance = (y - side * (0.4 + 0.05 * image)) ** 2 + (x - side * (0.6 - 0.05 * image)) ** 2
        holes.append(torch.zeros(tokens, dtype=torch.bool).index_fill(0, distance.flatten().argsort()[:count], True))
    return torch.stack(holes)


def strokes(tokens: int, share: float) -> Tensor:
    """(BATCH, tokens) bool: free strokes and dabs, in the manner of NVIDIA's irregular masks."""
    side, rng = round(tokens**0.5), np.random.default_rng(0)
    holes = [random_hole(side, side, rng, ratio=(share, share), kind="strokes") for _ in range(BATCH)]
    return torch.from_numpy(np.stack(holes)).flatten(1)


MASKS = {"blob": blob, "strokes": strokes}


def prepare(mask: str, tokens: int, channels: int, share: float, backward: bool, device: str) -> dict[str, Run]:
    """What there is to time, each compared with the float64 definition of the first image."""
    torch.compiler.reset()  # so that each size is compiled for itself
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(BATCH, tokens, channels, generator=generator) for _ in range(4))
    hole = MASKS[mask](tokens, share)
    first = [x[:1].double().requires_grad_() for x in (query, key, value)]
    expected = [definitions.masked_correlation(*first, hole[:1], TEMPERATURE)]
    if backward:
        expected += torch.autograd.grad(expected[0], first, grad[:1].double())
    tensors = [x.to(device).requires_grad_(backward) for x in (query, key, value)]
    hole, grad = hole.to(device), grad.to(device)

    def run(implementation: Callable[..., Tensor]) -> list[Tensor]:
        out = implementation(*tensors, hole)
        return [out, *torch.autograd.grad(out, tensors, grad)] if backward else [out]

    runs = {}
    for name, implementation in IMPLEMENTATIONS.items():
        if name.startswith("showface") and ops.why_not("masked_correlation", name.split()[1], device):
            continue
        for got, wanted in zip(run(implementation), expected, strict=True):
            torch.testing.assert_close(got[:1].detach().cpu().double(), wanted.detach(), rtol=1e-4, atol=1e-4)
        runs[name] = partial(run, implementation)
    return runs


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", ["forward", "forward and backward"])
@pytest.mark.parametrize("share", HOLES)
@pytest.mark.parametrize(("tokens", "channels"), SIZES)
@pytest.mark.parametrize("mask", MASKS)
def test_masked_correlation(
    benchmark, mask: str, tokens: int, channels: int, share: float, mode: str, name: str
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("showface"):
        reason = ops.why_not("masked_correlation", name.split()[1], device)
        if reason:
            pytest.skip(reason)
    report(
        benchmark,
        f"masked_correlation {mask} N={tokens} C={channels} hole={share:.0%} {mode} {device}",
        name,
        partial(prepare, mask, tokens, channels, share, mode != "forward", device),
        device=device,
        rounds=15 if tokens < 2000 else 5,
    )
