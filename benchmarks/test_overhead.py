"""The time of a call on tensors so small that little is computed: `pytest benchmarks/test_overhead.py`.

It is the time on the host: checks, torch's dispatcher, the choice of a backend, and autograd. Two of torch's own
operators on such tensors show how fast the machine is.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interleaved import Checked, check_all
from measure import DEVICE, Run
from to_pytest import CLOCK, report
from torch import Tensor

from showface import ops
from showface.ops import definitions

TOKENS, CHANNELS, REGIONS, SLOTS = 8, 16, 2, 4
RECORDED, BACKWARD = "forward, recorded by autograd", "forward and backward"
MODES = ("forward", RECORDED, BACKWARD)
NAMES = ("showface", "addition", "scaled_dot_product_attention")


def images(count: int) -> list[Tensor]:
    hole = torch.arange(TOKENS, device=DEVICE)[None] % 2 == 0
    return [*torch.randn(count, 1, TOKENS, CHANNELS, device=DEVICE), hole]


def memory() -> list[Tensor]:
    latent, blocks = torch.randn(TOKENS, CHANNELS), torch.randn(REGIONS, SLOTS, CHANNELS)
    return [x.to(DEVICE) for x in (latent, blocks, torch.arange(TOKENS) % REGIONS)]


# For each operator, a call of it in `showface.ops` or in the definitions, and its tensors.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], list[Tensor]]]] = {
    "memory_read": (lambda of, *x: of.memory_read(*x, temperature=8.0), memory),
    "memory_write": (lambda of, *x: of.memory_write(*x, temperature=8.0, rate=0.1)[0], memory),
    "masked_correlation": (lambda of, *x: of.masked_correlation(*x, temperature=8.0), partial(images, 3)),
    "coordination_loss": (lambda of, *x: of.coordination_loss(*x)[0], partial(images, 2)),
}
CASES = [(call, mode, name) for call in CALLS for mode in MODES for name in NAMES]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_mode(mode: str, function: Callable[..., Tensor], inputs: list[Tensor]) -> Run:
    """A call of a function on its tensors. It returns the result or the gradients."""
    floats = [x for x in inputs if x.is_floating_point()]
    for x in floats:
        x.requires_grad_(mode != "forward")
    upstream = torch.ones_like(function(*inputs))

    def run() -> tuple[Tensor, ...]:
        out = function(*inputs)
        return torch.autograd.grad(out, floats, upstream) if mode == BACKWARD else (out,)

    return run


def prepare(call: str, mode: str) -> Checked:
    torch.manual_seed(0)
    function, make = CALLS[call]
    inputs = make()
    expected = in_mode(mode, partial(function, definitions), inputs)()

    def check(result: tuple[Tensor, ...]) -> None:
        for x, y in zip(result, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)

    ours = check_all({"showface": in_mode(mode, partial(function, ops), inputs)}, check)
    yardsticks = {
        "addition": in_mode(mode, torch.add, images(2)[:2]),
        "scaled_dot_product_attention": in_mode(mode, F.scaled_dot_product_attention, images(3)[:3]),
    }
    return Checked({**ours.runs, **yardsticks}, ours.left_out)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("call", "mode", "name"), CASES)
def test_overhead(benchmark, call: str, mode: str, name: str) -> None:
    case = {"op": "overhead", "call": call, "mode": mode, "dtype": "float32"}
    report(benchmark, case, name, partial(prepare, call, mode), work=None, rounds=2000)
