"""The operators on any shape, dtype, strides, offset and values, on every backend. Hypothesis chooses the inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from showface import ops
from showface.ops import definitions
from showface.ops.precision import widen

pytest.importorskip("hypothesis", reason="the property tests need hypothesis, which the extra `test` brings")
from hypothesis import strategies as st

from support.backends import dtypes_of
from support.operator_tests import on
from support.properties import EXAMPLES, run_many

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CLEAR = (TypeError, ValueError, RuntimeError)
MANY = 500  # of each of the two tests, so each backend runs 1,000
MOST_INTERPRETED = 100  # Triton's interpreter takes about a second for an example
many = pytest.mark.parametrize("count", [EXAMPLES, pytest.param(MANY, marks=pytest.mark.long)])

WIDTHS = [1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65]
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


def numbers(draw: Any, backend: str) -> tuple[int, int]:
    """A number of tokens and one of channels. Triton's interpreter takes long for many tokens."""
    tokens = st.integers(0, 3) | st.integers(0, 12 if backend == "triton" else 40)
    return draw(tokens), draw(st.integers(0, 40) | st.sampled_from(WIDTHS))


def largest(*inputs: Tensor) -> float:
    finite = [x[x.isfinite()].abs().max().item() for x in inputs if x.isfinite().any()]
    return max(finite, default=0.0)


@st.composite
def memory_cases(draw: Any, backend: str, device: str) -> tuple[Tensor, Tensor, Tensor, float]:
    dtype = draw(st.sampled_from(dtypes_of(backend, device)))
    tokens, channels = numbers(draw, backend)
    blocks, slots = draw(st.integers(1, 2 if backend == "triton" else 4)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    region = torch.randint(-1, blocks, (tokens,), generator=generator)
    temperature = draw(st.sampled_from([1e-300, 1e-3, 1.0, 16.0, 100.0]))
    return (
        draw(tensors((tokens, channels), dtype)),
        draw(tensors((blocks, slots, channels), dtype)),
        region,
        temperature,
    )


def is_interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def examples(count: int, backend: str, device: str) -> int:
    return min(count, MOST_INTERPRETED) if is_interpreted(backend, device) else count


class Properties:
    @classmethod
    def is_long(cls, test: str, case: dict[str, Any]) -> bool:
        return is_interpreted(case["backend"][1], case["device"])


@many
class TestMemory(Properties):
    op = "memory_read"

    def test_definition(self, device: str, backend: str, count: int) -> None:
        def check(case: tuple[Tensor, Tensor, Tensor, float]) -> None:
            *tensors, temperature = case
            z, m = widen(*tensors[:2])
            region, tokens, size = tensors[2], len(z), largest(z, m)
            here, options = on(device, tensors), {"temperature": temperature, "backend": backend}
            got = ops.memory_read(*here, **options)
            assert_like(got, definitions.memory_read(z, m, region, temperature), size)
            if not (z.isfinite().all() and m.isfinite().all()):
                return  # the definition's sums are over all blocks, so there a NaN reaches the others
            size = max(1.0, size) * (1 + tokens)
            mass = ops.memory_accumulate(*here, **options)
            assert_like(mass, definitions.memory_accumulate(z, m, region, temperature), size)
            got = ops.memory_write(*here, rate=0.1, **options)
            assert_like(got, definitions.memory_write(z, m, region, temperature, 0.1), size)

        run_many(examples(count, backend, device), memory_cases(backend, device), check)


@st.composite
def image_cases(draw: Any, backend: str, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, float, str]:
    dtype = draw(st.sampled_from(dtypes_of(backend, device)))
    (tokens, channels), (_, values), batch = numbers(draw, backend), numbers(draw, backend), draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    hole = torch.rand((batch, tokens), generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    query, key = (draw(tensors((batch, tokens, channels), dtype)) for _ in range(2))
    value = draw(tensors((batch, tokens, values), dtype))
    temperature = draw(st.sampled_from([1e-300, 1.0, 16.0, 100.0]))
    return query, key, value, hole, temperature, draw(st.sampled_from(["valid", "all"]))


@many
class TestMaskedCorrelation(Properties):
    op = "masked_correlation"

    def test_definition(self, device: str, backend: str, count: int) -> None:
        def check(case: tuple[Tensor, Tensor, Tensor, Tensor, float, str]) -> None:
            *tensors, temperature, keys = case
            options = {"temperature": temperature, "keys": keys, "backend": backend}
            got = ops.masked_correlation(*on(device, tensors), **options)
            q, k, v = widen(*tensors[:3])
            assert_like(got, definitions.masked_correlation(q, k, v, tensors[3], temperature, keys), largest(v))

        run_many(examples(count, backend, device), image_cases(backend, device), check)


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
