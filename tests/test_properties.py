"""Properties that must hold for any input: a right result, or one clear error. Hypothesis chooses the inputs."""

import contextlib
import io
import json
import string
import sys
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from showface import MDRNetsConfig, cli, native, ops
from showface.data import read_image, read_mask
from showface.ops import definitions
from showface.ops.precision import widen

pytest.importorskip("hypothesis", reason="the property tests need hypothesis, which the extra `test` brings")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES, MANY = 40, 400
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(native.load() is None, reason="no extension"))]
CLEAR = (TypeError, ValueError, RuntimeError)


def examples(count: int) -> Any:
    """The same examples in every run, so that a failure in CI repeats."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


both_lists = pytest.mark.parametrize("count", [EXAMPLES, pytest.param(MANY, marks=pytest.mark.long)])


def run_many(count: int, strategy: Any, check: Any) -> None:
    examples(count)(given(strategy)(check))()


# The operators.

extents = st.integers(0, 3) | st.integers(0, 40)
widths = st.integers(0, 40) | st.sampled_from([1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65])
scales = st.sampled_from([0.0, 1e-30, 1e-8, 1e-3, 1.0, 100.0, 1e4])
layouts = st.sampled_from(["contiguous", "transposed", "gaps", "expanded", "offset"])


@st.composite
def tensors(draw: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor with this shape and dtype, and any strides and scale; some are constant, or hold a NaN or infinity."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * draw(scales)).to(dtype)
    if x.numel() and draw(st.integers(0, 19)) == 0:
        x.flatten()[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    if len(shape) > 1 and draw(st.booleans()):
        x[..., 1::2, :] = x[..., :1, :]  # equal rows
    layout = draw(layouts)
    if layout == "transposed" and x.dim() > 1:
        return x.mT.contiguous().mT
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded" and shape and shape[0]:
        return x[:1].expand(shape)
    if layout == "offset":
        return torch.cat([x.flatten()[:1], x.flatten()])[x.numel() > 0 :].view(shape)
    return x


def assert_like(got: Any, expected: Any, largest: float) -> None:
    for x, y in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
        half = x.dtype in (torch.float16, torch.bfloat16)
        rtol = {torch.float64: 1e-9, torch.float32: 1e-3}.get(x.dtype, 0.02)
        # A sum over tokens of float16 may be beyond the largest float16.
        expected_here = y.to(x.dtype) if half else y
        torch.testing.assert_close(
            x, expected_here.to(x.dtype), rtol=rtol, atol=rtol * max(largest, 1e-30), equal_nan=True
        )


def largest(*inputs: Tensor) -> float:
    finite = [x[x.isfinite()].abs().max().item() for x in inputs if x.isfinite().any()]
    return max(finite, default=0.0)


@st.composite
def memory_cases(draw: Any) -> tuple[Tensor, Tensor, Tensor, float]:
    dtype = draw(st.sampled_from(FLOATS))
    tokens, blocks, slots, channels = draw(extents), draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(widths)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    region = torch.randint(-1, blocks, (tokens,), generator=generator)
    temperature = draw(st.sampled_from([1e-300, 1e-3, 1.0, 16.0, 100.0]))
    return (
        draw(tensors((tokens, channels), dtype)),
        draw(tensors((blocks, slots, channels), dtype)),
        region,
        temperature,
    )


@both_lists
@pytest.mark.parametrize("named", BACKENDS)
def test_memory_operators(named: str, count: int) -> None:
    def check(case: tuple[Tensor, Tensor, Tensor, float]) -> None:
        latent, memory, region, temperature = case
        z, m = widen(latent, memory)
        size = largest(z, m)
        options = {"temperature": temperature, "backend": named}
        got = ops.memory_read(latent, memory, region, **options)
        assert_like(got, definitions.memory_read(z, m, region, temperature), size)
        if not (z.isfinite().all() and m.isfinite().all()):
            return  # the definition's sums are over all blocks, so there a NaN reaches the others
        got = ops.memory_accumulate(latent, memory, region, **options)
        assert_like(got, definitions.memory_accumulate(z, m, region, temperature), max(1.0, size) * (1 + len(z)))
        got = ops.memory_write(latent, memory, region, rate=0.1, **options)
        assert_like(got, definitions.memory_write(z, m, region, temperature, 0.1), max(1.0, size) * (1 + len(z)))

    run_many(count, memory_cases(), check)


@st.composite
def image_cases(draw: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, float, str]:
    dtype = draw(st.sampled_from(FLOATS))
    batch, tokens, channels, values = draw(st.integers(0, 3)), draw(extents), draw(widths), draw(widths)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    hole = torch.rand((batch, tokens), generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    query, key = (draw(tensors((batch, tokens, channels), dtype)) for _ in range(2))
    value = draw(tensors((batch, tokens, values), dtype))
    return (
        query,
        key,
        value,
        hole,
        draw(st.sampled_from([1e-300, 1.0, 16.0, 100.0])),
        draw(st.sampled_from(["valid", "all"])),
    )


@both_lists
@pytest.mark.parametrize("named", BACKENDS)
def test_masked_correlation(named: str, count: int) -> None:
    def check(case: tuple[Tensor, Tensor, Tensor, Tensor, float, str]) -> None:
        query, key, value, hole, temperature, keys = case
        got = ops.masked_correlation(query, key, value, hole, temperature=temperature, keys=keys, backend=named)
        q, k, v = widen(query, key, value)
        assert_like(got, definitions.masked_correlation(q, k, v, hole, temperature, keys), largest(v))

    run_many(count, image_cases(), check)


def test_arguments_that_do_not_fit_are_refused_in_one_line() -> None:
    shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
    others = [torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 3, device="meta")]
    anything = st.one_of(
        st.tuples(shapes, st.sampled_from(FLOATS)).flatmap(lambda case: tensors(*case)),
        st.sampled_from([*others, None, 1, 1.0, "x", [1.0], float("nan")]),
    )
    calls = {
        lambda *x: ops.memory_read(x[0], x[1], x[2], temperature=x[3], backend="auto"): 4,
        lambda *x: ops.memory_write(x[0], x[1], x[2], temperature=x[3], rate=x[4]): 5,
        lambda *x: ops.memory_blend(x[0], x[1], x[2], rate=x[3]): 4,
        lambda *x: ops.masked_correlation(x[0], x[1], x[2], x[3], temperature=x[4], keys=x[5], backend=x[6]): 7,
        lambda *x: ops.coordination_loss(x[0], x[1], x[2]): 3,
        lambda *x: ops.memory_address(x[0], x[1], x[2], temperature=x[3]): 4,
        lambda *x: ops.correlation_rows(x[0], x[1], x[2], x[3], temperature=x[4]): 5,
    }

    def check(case: tuple[Any, tuple[Any, ...]]) -> None:
        call, arguments = case
        problem = None
        try:
            call(*arguments)
        except CLEAR as error:
            problem = str(error)
        assert problem is None or ("\n" not in problem and "must" in problem)

    cases = st.sampled_from(list(calls)).flatmap(
        lambda call: st.tuples(st.just(call), st.tuples(*[anything] * calls[call]))
    )
    run_many(4 * EXAMPLES, cases, check)


# Images and masks.


@both_lists
def test_any_picture_is_read_as_image_and_as_mask(count: int) -> None:
    names = "1 L P RGB RGBA RGBX CMYK YCbCr HSV LA I F I;16 La RGBa PA"
    numbers = {"I": [0, 1, 255, 65535], "I;16": [0, 1, 255, 65535], "F": [0, 1, 255, 65535, 0.5, -5, np.nan, np.inf]}
    dtypes = {"I": np.int32, "F": np.float32, "I;16": np.uint16}

    def check(case: tuple[str, int, int, int, str, float]) -> None:
        mode, width, height, seed, polarity, threshold = case
        rng = np.random.default_rng(seed)
        if mode in numbers:
            image = Image.fromarray(rng.choice(numbers[mode], (height, width)).astype(dtypes[mode]))
        elif mode in ("La", "RGBa", "PA"):
            bands = {"La": 2, "RGBa": 4, "PA": 2}[mode]
            image = Image.frombytes(mode, (width, height), rng.bytes(width * height * bands))
        else:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        rgb = read_image(image)
        assert (rgb.mode, rgb.size) == ("RGB", (width, height))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hole = read_mask(image, polarity=polarity, threshold=threshold)
            resized = read_mask(image, (5, 7), polarity=polarity, threshold=threshold)
        assert (hole.dtype, hole.shape, resized.shape) == (np.bool_, (height, width), (5, 7))

    sides, polarities = st.integers(1, 30), st.sampled_from(["white", "black"])
    modes, seeds = st.sampled_from(names.split()), st.integers(0, 2**31)
    run_many(count, st.tuples(modes, sides, sides, seeds, polarities, st.floats(0.01, 0.99)), check)


# Configurations.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([field.name for field in fields(MDRNetsConfig)]) | st.text(string.ascii_lowercase, max_size=8)


@both_lists
def test_any_configuration(count: int) -> None:
    def check(values: dict[str, Any]) -> None:
        problem = ""
        try:
            config = MDRNetsConfig.from_dict(values)
        except ValueError as error:
            problem = str(error)
        if problem:
            assert any(name in problem for name in values)
            return
        again = MDRNetsConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert all(type(getattr(config, name)) in (int, float, bool, tuple) for name in values)

    run_many(4 * count, st.dictionaries(names, json_values, max_size=3), check)


# The command.

WORDS = """inpaint mask demo memory info --version --help -o --out --model --mask --paint --alpha --size --grow --batch
--invert --no-faces --mask-polarity --overwrite --limit --device white black 0 -1 16 1e9 nan photo.png mask.png
nothing.png folder x.png x.gif x.jpg . .. / ~ ~/x.png psnr cpu meta [red] [/] é"""
words = st.sampled_from([*WORDS.split(), "", "\0"]) | st.text(max_size=6)


@both_lists
def test_any_command_ends_in_one_line(count: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("showface.hole_filling.fill_holes", None)
    monkeypatch.setattr("showface.registry.load_model", refuse_to_load)
    monkeypatch.setattr(
        "showface.info.describe",
        lambda: {"versions": {}, "devices": [], "extension": {"built": False, "why_missing": "x"}, "operators": {}},
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def check(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["showface", *arguments])
        out, err = io.StringIO(), io.StringIO()
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            cli.main()
        assert "Traceback" not in err.getvalue()
        if stop.value.code == 1:
            lines = [line for line in err.getvalue().splitlines() if not line.startswith("note:")]
            assert len(lines) == 1
            assert lines[0].startswith("error: ")
            assert sorted(path.name for path in tmp_path.rglob("*")) == before
        else:
            assert stop.value.code in (0, 2)

    commands = st.sampled_from(["inpaint", "mask", "demo", "memory", "info"]).map(lambda word: [word])
    run_many(count, st.tuples(commands | st.just([]), st.lists(words, max_size=7)).map(lambda x: x[0] + x[1]), check)


def refuse_to_load(folder: object, device: object = "cpu") -> None:
    raise ValueError("no model is loaded here")
