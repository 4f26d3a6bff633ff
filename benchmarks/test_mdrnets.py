"""The whole model, with our kernels and with the PyTorch reference: `pytest benchmarks/test_mdrnets.py`.

Modes: from PIL image to PIL image; the network only; a training step without the optimiser. The implementations of a
group differ in the operators' backends (`showface`, or `reference` for PyTorch) and in torch.compile. All results are
compared with the reference in float32. For bfloat16 the network is autocast.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
import torch
from interleaved import Checked, Work
from measure import DEVICE
from PIL import Image
from to_pytest import CLOCK, report
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import showface
from showface.losses import LossWeights, weighted_sum
from showface.nn import hole_tokens
from showface.ops import dispatch

IMPLEMENTATIONS = ("showface", "reference", "showface, compiled", "reference, compiled")


@dataclass(frozen=True)
class Problem:
    size: int  # side of the image in pixels
    batch: int
    hole: float  # side of the square hole, as a fraction of the image's
    dtype: str
    mode: str


def problems() -> Iterator[Problem]:
    yield Problem(256, 1, 0.5, "float32", "photo to photo")
    # Half precision first on a GPU, where networks run in it.
    for dtype in ("float32", "bfloat16") if DEVICE == "cpu" else ("bfloat16", "float32"):
        yield from (Problem(256, batch, 0.5, dtype, "inference") for batch in (1, 4, 16))
        yield Problem(256, 4, 0.5, dtype, "training step")
    # Show how the cost grows with the image. The number N of tokens grows with the area, the number of pairs with N².
    yield from (Problem(size, 1, 0.5, "float32", "inference") for size in (128, 512, 768, 1024))
    yield from (Problem(512, 1, hole, "float32", "inference") for hole in (0.1, 0.25, 0.75))


@cache
def network() -> showface.MDRNets:
    # Not the default model: on this input, the gradient of its memory's temperature is so small that bfloat16 rounding
    # changes it by a third.
    return cast(showface.MDRNets, showface.load_model("psnr", DEVICE))


def make(problem: Problem) -> tuple[Tensor, Tensor]:
    """Smooth noise (batch, 3, size, size) in [-1, 1], and a square hole (batch, 1, size, size) in the centre."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(problem.batch, 3, problem.size // 16, problem.size // 16, generator=generator) * 2 - 1
    image = torch.nn.functional.interpolate(image, size=(problem.size,) * 2, mode="bilinear")
    hole = torch.zeros(problem.batch, 1, problem.size, problem.size)
    first = int(problem.size * (1 - problem.hole) / 2)
    hole[..., first : problem.size - first, first : problem.size - first] = 1
    return image.to(DEVICE, memory_format=torch.channels_last), hole.to(DEVICE)


@cache
def work(problem: Problem) -> Work:
    """The operations counted by torch, which misses our operators, plus those of the masked correlation."""
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
    """The change that the refinement makes to the coarse image."""
    output = model(image, hole)
    return [output.image - output.coarse]


def step(model: showface.MDRNets, image: Tensor, hole: Tensor) -> list[Tensor]:
    """Forward, losses, backward, and the update of the memory.

    Returns:
        The new memory, and the gradients of weights that depend on the kernels' backward.
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


def prepare(problem: Problem) -> Checked:
    """The implementations to time, after their results were compared with the reference."""
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
        model.load_state_dict(state)  # a training step changes the memory
        check(run(name, each), wanted, 1e-3 if problem.dtype == "float32" else 0.4)
        runs[name] = partial(run, name, each)
    return Checked(runs, {})


def check(got: Any, wanted: Any, limit: float) -> None:
    """Raise AssertionError unless the relative error of each result is below the limit."""
    if isinstance(got, Image.Image):
        assert np.abs(np.asarray(got, int) - np.asarray(wanted, int)).max() <= 1
        return
    for x, y in zip(got, wanted, strict=True):
        error = ((x - y).norm() / y.norm()).item()
        assert error < limit, f"off by {error:.2%} of the norm"


def why_left_out(name: str, problem: Problem) -> str | None:
    if "compiled" in name and (problem.mode != "inference" or problem.size != 256 or problem.batch != 1):
        return "torch.compile is only measured for the network with one image"
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
