"""The list of tests that every operator passes, on every backend and device."""

from typing import Any

import pytest
import torch
from torch import Tensor

from support.tolerances import assert_close, gradients

Case = tuple[Tensor, ...]
# Tokens and channels: sizes around those of tiles, and widths that networks use.
SIZES = [(1, 1), (7, 3), (63, 8), (64, 20), (100, 64), (129, 128), (1023, 256), (64, 320), (7, 512)]
# The sizes at which the short list also interprets float16: one or several pieces per row, one or several tiles.
HALF_SIZES = [(64, 20), (129, 128), (64, 64)]
TEMPERATURE = 8.0


class OperatorTests:
    """Base class of an operator's tests. A subclass defines the operator and adds the tests that only it needs."""

    op: str

    def make(self, tokens: int, channels: int, dtype: torch.dtype = torch.float64) -> Case:
        """Random arguments; floating-point tensors come first and are differentiable."""
        raise NotImplementedError

    def call(self, *case: Tensor, temperature: Any = TEMPERATURE, backend: str = "auto") -> Any:
        """The operator as users call it. An operator without a temperature ignores `temperature`."""
        raise NotImplementedError

    def define(self, *case: Tensor, temperature: Any = TEMPERATURE) -> Any:
        """Its definition."""
        raise NotImplementedError

    def schema_arguments(self, case: Case, temperature: Tensor | None, backend: str) -> tuple[Any, ...]:
        """The arguments of `torch.ops.showface.<op>` for a call."""
        raise NotImplementedError

    has_temperature = True

    @classmethod
    def is_long(cls, test: str, case: dict[str, Any]) -> bool:
        """Return whether only the long list runs this case of a test.

        Triton's interpreter takes up to a second for one program of a launch. In the short list it runs float32 in all
        sizes, and float16 in a few. Checks of the registration in torch, which all backends share, run once. On the
        emulated GPU with little shared memory, it runs the widths for which that matters.
        """
        _, backend, kilobytes = case["backend"]
        if kilobytes == 99:
            return case.get("channels", 0) < 256
        if (case["device"], backend) != ("cpu", "triton"):
            return False
        if case.get("dtype", torch.float32) != torch.float32:
            sized = "factor" in case or "tokens" in case
            return sized and (case.get("tokens"), case.get("channels")) not in HALF_SIZES
        repeats = {"dynamic": False, "with_temperature": False, "half": torch.bfloat16, "bits": 0x7FC00000}
        return any(name in case and case[name] == value for name, value in repeats.items())

    # Comparisons with the definition.

    def check(self, case: Case, device: str, backend: str) -> None:
        """Check that the results equal those of the definition."""
        assert torch.empty(64, device=device).isnan().all(), "fresh memory should be poisoned"
        results = flat(self.call(*on(device, case), backend=backend))
        expected = flat(self.define(*wide(case)))
        assert len(results) == len(expected)
        for x, y in zip(results, expected, strict=True):
            assert x.device.type == device
            # Mass and losses are sums, so they are float32 for half-precision arguments.
            assert_close(x, y)

    def check_gradients(self, case: Case, device: str, backend: str) -> None:
        """Check that the gradients equal those of the definition, each in the dtype of its argument."""
        dtype = case[0].dtype
        weights = [torch.randn(x.shape, dtype=torch.float64) for x in flat(self.define(*wide(case)))]
        tau = [torch.tensor(4.0, dtype=torch.float64)] * self.has_temperature

        def run(function, *inputs, **options):
            *tensors, temperature = inputs if self.has_temperature else (*inputs, None)
            return function(*tensors, temperature=temperature, **options)

        got = gradients(lambda *x: run(self.call, *x, backend=backend), on(device, (*case, *tau)), weights)
        expected = gradients(lambda *x: run(self.define, *x), (*wide(case), *tau), weights)
        floats = sum(x.is_floating_point() for x in case)
        assert [x.dtype for x in got] == [dtype] * floats + [torch.float64] * len(tau)
        for x, y in zip(got, expected, strict=True):
            assert_close(x, y, dtype, gradient=True)

    # The tests.

    @pytest.mark.parametrize(("tokens", "channels"), SIZES)
    def test_definition(self, device, backend, dtype, tokens, channels):
        self.check(self.make(tokens, channels, dtype), device, backend)

    @pytest.mark.parametrize(("tokens", "channels"), [(33, 17), (64, 64)])
    def test_gradient(self, device, backend, dtype, tokens, channels):
        self.check_gradients(self.make(tokens, channels, dtype), device, backend)

    def test_gradcheck(self, device, backend):
        case = on(device, self.make(6, 3))
        inputs = [x for x in case if x.is_floating_point()]
        rest = case[len(inputs) :]
        if self.has_temperature:
            inputs.append(torch.tensor(3.0, dtype=torch.float64, device=device))

        def run(*inputs):
            *tensors, temperature = inputs if self.has_temperature else (*inputs, None)
            return self.call(*tensors, *rest, temperature=temperature, backend=backend)

        # With interpreted kernels, check random directions only: all elements would take minutes.
        fast = backend == "triton" and device == "cpu"
        assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs], fast_mode=fast)

    @pytest.mark.parametrize("factor", [0.0, 1e4, 1e-8], ids=["zero", "huge", "tiny"])
    def test_extreme_vectors(self, device, backend, dtype, factor):
        case = self.make(30, 5, dtype)
        for index, x in enumerate(case):
            if x.is_floating_point():
                x.flatten(0, -2)[:: 2 + index] *= factor
        self.check(case, device, backend)
        if dtype == torch.float64:
            self.check_gradients(case, device, backend)

    @pytest.mark.parametrize("temperature", [1e-300, 1e-20, 1e4, 1e10, 1e20])
    def test_extreme_temperatures(self, device, backend, temperature):
        """The result is right, or the temperature is refused, as a float and as a tensor."""
        if not self.has_temperature:
            pytest.skip("it has no temperature")
        case = on(device, self.make(16, 4, torch.float32))
        tensor = torch.tensor(temperature, dtype=torch.float64, device=device)
        if temperature < 1e7:
            for given in (temperature, tensor):
                got = flat(self.call(*case, temperature=given, backend=backend))
                for x, y in zip(got, flat(self.define(*wide(case), temperature=temperature)), strict=True):
                    torch.testing.assert_close(x.double(), y, rtol=0.01, atol=0.01)
            return
        # A GPU does not read the value of a tensor.
        for given in (temperature, tensor) if device == "cpu" else (temperature,):
            with pytest.raises(ValueError, match=r"temperature must be at most 100000 for float32, got 1"):
                self.call(*case, temperature=given, backend=backend)

    def test_duplicates(self, device, backend):
        case = self.make(30, 5, torch.float32)
        for x in case:
            if x.is_floating_point():
                x[..., 1::2, :] = x[..., : x.shape[-2] // 2 * 2 : 2, :].clone()
        self.check(case, device, backend)

    def test_views(self, device, backend):
        case = self.make(24, 10, torch.float32)
        turned = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in case]
        channels_first = [x.mT.contiguous().mT if x.dim() == 3 else x for x in case]
        # Views of every second element.
        gaps = [torch.stack([x, x], -1)[..., 0] for x in case]
        rows_with_gaps = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in case]
        for views in (turned, channels_first, gaps, rows_with_gaps):
            self.check(tuple(views), device, backend)

    def test_runs_are_equal(self, device, backend):
        case = on(device, self.make(129, 17, torch.float32))
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case]
        floats = [x for x in inputs if x.requires_grad]
        runs = []
        for _ in range(2):
            out = flat(self.call(*inputs, backend=backend))
            runs.append([*out, *torch.autograd.grad(sum(x.square().sum() for x in out), floats)])
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second)

    @pytest.mark.parametrize("with_temperature", [False, True])
    def test_opcheck(self, device, backend, with_temperature):
        case = [x.requires_grad_() if x.is_floating_point() else x for x in on(device, self.make(20, 6, torch.float32))]
        tau = torch.tensor(3.0, device=device, requires_grad=True) if with_temperature else None
        arguments = self.schema_arguments(tuple(case), tau, backend)
        torch.library.opcheck(getattr(torch.ops.showface, self.op).default, arguments)

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile(self, device, backend, dynamic):
        """It compiles to one graph. The dynamic graph also runs with other sizes."""
        torch._dynamo.reset()

        def function(*case, temperature):
            return self.call(*case, temperature=temperature, backend=backend)

        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for tokens in (20, 31):
            inputs = [
                x.requires_grad_() if x.is_floating_point() else x
                for x in on(device, self.make(tokens, 6, torch.float32))
            ]
            tau = torch.tensor(5.0, device=device, requires_grad=True)
            floats = [x for x in inputs if x.requires_grad] + [tau] * self.has_temperature
            both = []
            for run in (function, compiled):
                out = flat(run(*inputs, temperature=tau))
                both.append([*out, *torch.autograd.grad(sum(x.square().sum() for x in out), floats)])
            for expected, got in zip(*both, strict=True):
                assert_close(got, expected, gradient=True)

    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_autocast(self, device, backend, half):
        """It runs in the autocast dtype if its kernel supports it. Sums stay in float32."""
        case = on(device, self.make(20, 6, torch.float32))
        expected = flat(self.call(*case, backend=backend))
        half_first = case[0].to(half), *case[1:]  # as from a preceding layer under autocast
        with torch.autocast(device, half):
            for mixed in (case, half_first):
                for got, exact in zip(flat(self.call(*mixed, backend=backend)), expected, strict=True):
                    assert got.dtype == self.autocast_dtype(half)
                    torch.testing.assert_close(got.float(), exact, rtol=0.1, atol=0.1)

    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_backward_inside_autocast(self, device, backend, half):
        """A gradient that is computed inside autocast is the one computed outside."""
        case = on(device, self.make(20, 6, torch.float32))
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case]
        floats = [x for x in inputs if x.requires_grad]
        with torch.autocast(device, half):
            loss = sum(x.float().square().sum() for x in flat(self.call(*inputs, temperature=64.0, backend=backend)))
            inside = torch.autograd.grad(loss, floats, retain_graph=True)
        for got, expected in zip(inside, torch.autograd.grad(loss, floats), strict=True):
            assert torch.equal(got, expected)

    def autocast_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the results under autocast to `dtype`."""
        return dtype

    @pytest.mark.gpu
    def test_current_stream(self, device, backend):
        """A launch runs on the current stream and waits only for it."""
        case = on(device, self.make(1023, 64, torch.float32))
        expected = flat(self.call(*case, backend=backend))
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(2)]
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                # This work takes long enough that a launch on another stream would read the arguments too early.
                late = [torch.zeros_like(x) for x in case]
                torch.cuda._sleep(100_000_000)
                for x, y in zip(late, case, strict=True):
                    x.copy_(y)
                results.append(flat(self.call(*late, backend=backend)))
        torch.cuda.synchronize()
        for got in results:
            for x, y in zip(got, expected, strict=True):
                assert torch.equal(x, y)


def on(device: str, case: Case) -> Case:
    return tuple(x.to(device) for x in case)


def wide(case: Case) -> Case:
    """The same numbers in float64."""
    return tuple(x.double() if x.is_floating_point() else x for x in case)


def flat(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]
