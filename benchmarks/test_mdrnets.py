"""The whole model, with the kernels and with the reference in their place: `pytest benchmarks/test_mdrnets.py`.

Modes: a photo from PIL image to PIL image; the network alone; a step of training without the optimiser. Within a group
there differ how the operators run (`showface`, or `reference` for plain PyTorch) and torch.compile; every result is
compared with that of the reference in float32. In bfloat16 the network is autocast.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from interleaved import CLOCK, Work, report
from measure import DEVICE, Run
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import showface
from showface.losses import LossWeights, weighted_sum
from showface.nn import channels_last, hole_tokens
from showface.ops import dispatch

IMPLEMENTATIONS = ("showface", "reference", "showface, compiled", "reference, compiled")


@dataclass(frozen=True)
class Problem:
    size: int  # side of the image in pixels
    batch: int
    hole: float  # side of the square hole, as a share of the image's
    dtype: str
    mode: str


def problems() -> Iterator[Problem]:
    yield Problem(256, 1, 0.5, "float32", "photo to photo")
    for dtype in ("float32", "bfloat16"):
        yield from (Problem(256, batch, 0.5, dtype, "inference") for batch in (1, 4, 16))
        yield Problem(256, 4, 0.5, dtype, "training step")
    # How the cost grows with the image. Tokens N grow with its area, pairs of all tokens with N².
    yield from (Problem(size, 1, 0.5, "float32", "inference") for size in (128, 512, 768, 1024))
    yield from (Problem(512, 1, hole, "float32", "inference") for hole in (0.1, 0.25, 0.75))


@cache
def network() -> showface.MDRNets:
    # Not the default one: on this input the gradient of its memory's temperature is so near 0 that in bfloat16 rounding
    # is a third of it.
    return channels_last(showface.MDRNets.from_pretrained("psnr")).to(DEVICE)


def make(problem: Problem) -> tuple[Tensor, Tensor]:
    """(batch, 3, size, size) of smooth noise in [-1, 1] and a square hole (batch, 1, size, size) in its middle."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(problem.batch, 3, problem.size // 16, problem.size // 16, generator=generator) * 2 - 1
    image = torch.nn.functional.interpolate(image, size=(problem.size,) * 2, mode="bilinear")
    hole = torch.zeros(problem.batch, 1, problem.size, problem.size)
    first = int(problem.size * (1 - problem.hole) / 2)
    hole[..., first : problem.size - first, first : problem.size - first] = 1
    return image.to(DEVICE, memory_format=torch.channels_last), hole.to(DEVICE)


@cache
def work(problem: Problem) -> Work:
    """What torch counts, which leaves out the operators, and the correlations of corrupted with known tokens."""
    image, hole = make(problem)
    training = problem.mode == "training step"
    with FlopCounterMode(display=False) as counter:
        (step if training else infer)(network(), image, hole)
    corrupted = hole_tokens(hole, torch.empty(1, 1, problem.size // 4, problem.size // 4)).sum(1).double()
    pairs = float((corrupted * ((problem.size // 4) ** 2 - corrupted)).sum())
    correlation = 4 * pairs * network().config.channels * (3 if training else 1)
    return Work(counter.get_total_flops() + correlation)


@torch.inference_mode()
def infer(model: Callable[..., Any], image: Tensor, hole: Tensor) -> list[Tensor]:
    """The result, as what the refinement does to the coarse image."""
    output = model(image, hole)
    return [output.image - output.coarse]


def step(model: showface.MDRNets, image: Tensor, hole: Tensor) -> list[Tensor]:
    """Forward, losses, backward, and the write of the memory.

    Returns:
        What the memory became, and the gradients of weights that the kernels' own gradients reach.
    """
    labels = torch.zeros_like(hole[:, 0], dtype=torch.int64)
    _, losses = model.training_losses(image, hole, labels, LossWeights())
    weighted_sum(losses, model.loss_weights(LossWeights())).backward()
    model.update_memory()
    modules: Any = model
    mining, memory = modules.enhancement, modules.memory
    weights = (mining.query.weight, mining.key.weight, mining.value.weight, modules.encoder.enter.weight)
    gradients = [weight.grad for weight in (*weights, mining.log_temperature, memory.log_temperature)]
    model.zero_grad()
    return [memory.memory.clone(), *gradients]


def prepare(problem: Problem) -> dict[str, Run]:
    """What there is to time, each compared with the reference."""
    torch.compiler.reset()
    image, hole = make(problem)
    pixels = ((image[0].permute(1, 2, 0).cpu() + 1) * 127.5).numpy().astype(np.uint8)
    photo, mask = Image.fromarray(pixels), hole[0, 0].cpu().numpy() > 0.5
    model = network()

    def run(name: str, model: Any, dtype: str = problem.dtype) -> Any:
        only = patch.object(dispatch, "BACKENDS", ("reference",)) if name.startswith("reference") else nullcontext()
        with only, torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            if problem.mode == "photo to photo":
                return showface.inpaint(photo, mask, model=model)
            return (step if problem.mode == "training step" else infer)(model, image, hole)

    state = {name: x.clone() for name, x in model.state_dict().items()}
    wanted = run("reference", model, "float32")
    runs = {}
    for name in IMPLEMENTATIONS:
        if why_left_out(name, problem):
            continue
        each = torch.compile(model) if "compiled" in name else model
        model.load_state_dict(state)  # a step of training writes to the memory
        check(run(name, each), wanted, 1e-3 if problem.dtype == "float32" else 0.4)
        runs[name] = partial(run, name, each)
    return runs


def check(got: Any, wanted: Any, limit: float) -> None:
    """Raise AssertionError unless each result is off by less than this share of its norm."""
    if isinstance(got, Image.Image):
        assert np.abs(np.asarray(got, int) - np.asarray(wanted, int)).max() <= 1
        return
    for x, y in zip(got, wanted, strict=True):
        error = ((x - y).norm() / y.norm()).item()
        assert error < limit, f"off by {error:.2%} of the norm"


def why_left_out(name: str, problem: Problem) -> str | None:
    if "compiled" in name and (problem.mode != "inference" or problem.size != 256 or problem.batch != 1):
        return "compiled is measured for the network and one image"
    return None


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: "-".join(map(str, asdict(problem).values())))
def test_mdrnets(benchmark, problem: Problem, name: str) -> None:
    reason = why_left_out(name, problem)
    if reason:
        pytest.skip(reason)
    case = {"op": "mdrnets", **asdict(problem)}
    rounds = 15 if problem.size * problem.batch <= 512 else 5
    report(benchmark, case, name, partial(prepare, problem), work=work(problem), rounds=rounds)
