"""The operators as torch sees them: opcheck, dispatch modes, compile, export, autocast."""

import sys

import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode

from showface import native, ops

from support.operator_tests import flat, on
from support.tolerances import assert_close

TOKENS, BLOCKS, SLOTS, CHANNELS = 20, 3, 4, 6


def memory_case(device: str = "cpu", dtype: torch.dtype = torch.float32):
    latent, memory = torch.randn(TOKENS, CHANNELS), torch.randn(BLOCKS, SLOTS, CHANNELS)
    region = torch.randint(-1, BLOCKS, (TOKENS,))
    return latent.to(device, dtype), memory.to(device, dtype), region.to(device)


def image_case(tensors: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    features = (torch.randn(2, TOKENS, CHANNELS).to(device, dtype) for _ in range(tensors))
    return *features, (torch.rand(2, TOKENS) < 0.4).to(device)


def read(latent, memory, region, temperature=8.0):
    return ops.memory_read(latent, memory, region, temperature=temperature)


def write(latent, memory, region, temperature=8.0):
    return ops.memory_write(latent, memory, region, temperature=temperature, rate=0.1)


def correlate(query, key, value, hole, temperature=8.0):
    return ops.masked_correlation(query, key, value, hole, temperature=temperature)


CALLS = {
    "memory_read": (read, memory_case),
    "memory_write": (write, memory_case),
    "masked_correlation": (correlate, lambda *where: image_case(3, *where)),
    "coordination_loss": (ops.coordination_loss, lambda *where: image_case(2, *where)),
}


@pytest.mark.parametrize(
    "name",
    [
        "memory_read_with_lse",
        "memory_accumulate",
        "memory_write",
        "memory_blend",
        "masked_correlation_with_lse",
        "coordination_loss",
    ],
)
def test_opcheck_of_backwards(device, name):
    operator = getattr(torch.ops.showface, f"{name}_backward").default
    tau = torch.tensor(3.0, device=device)
    latent, memory, region = memory_case(device)
    mass = torch.rand(memory.shape[:2], device=device)
    if name == "memory_read_with_lse":
        results = torch.ops.showface.memory_read_with_lse(latent, memory, region, tau, 1.0)
        case = (latent, latent, memory, region, *results, tau, 1.0)
    elif name == "memory_accumulate":
        case = (mass, memory, latent, memory, region, tau, 1.0)
    elif name == "memory_write":
        case = (memory, mass, latent, memory, region, tau, 1.0, 0.1)
    elif name == "memory_blend":
        case = (memory, memory, mass, memory, 0.1)
    elif name == "masked_correlation_with_lse":
        case = image_case(3, device)
        results = torch.ops.showface.masked_correlation_with_lse(*case, tau, 1.0, "all")
        case = (torch.randn(2, TOKENS, CHANNELS, device=device), *case, *results, tau, 1.0, "all")
    else:
        case = (torch.ones((), device=device), torch.ones((), device=device), *image_case(2, device), True)
        torch.library.opcheck(operator, (*case[:-1], False))
    torch.library.opcheck(operator, case)


def arguments(name: str, recording: bool):
    """The arguments of an operator, which are differentiable if `recording`."""
    return [x.requires_grad_(recording and x.is_floating_point()) for x in CALLS[name][1]()]


class Log(TorchDispatchMode):
    """The names of all operators that torch is asked to run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("op", CALLS)
def test_dispatch_modes_see_every_operator(op, recording):
    """An operator calls its kernel at once only if nobody else wants to see the call."""
    case = arguments(op, recording)
    with Log() as log:
        out = flat(CALLS[op][0](*case))
        if recording:
            sum(x.sum() for x in out).backward()
    whole = {"memory_read": "memory_read_with_lse", "masked_correlation": "masked_correlation_with_lse"}.get(op, op)
    assert log.names.count(f"showface.{whole}.default") == 1
    assert log.names.count(f"showface.{whole}_backward.default") == recording


@pytest.mark.parametrize("op", CALLS)
def test_nothing_is_recorded_without_autograd(op):
    """In inference mode, in no_grad, and below autograd, where the kernels of other operators run."""
    function, case = CALLS[op][0], arguments(op, recording=True)
    expected = flat(function(*case))
    assert all(x.requires_grad for x in expected)
    for region in (torch.inference_mode(), torch.no_grad(), torch._C._AutoDispatchBelowAutograd()):
        with region:
            for inputs in (case, [x.clone() for x in case]):
                for got, wanted in zip(flat(function(*inputs)), expected, strict=True):
                    assert not got.requires_grad
                    assert torch.equal(got, wanted.detach())


@pytest.mark.parametrize("op", CALLS)
def test_tensors_that_are_more_than_their_memory(op):
    """Negative views, whose memory holds the opposite numbers, and tensors without memory."""
    function, case = CALLS[op][0], arguments(op, recording=False)
    views = [torch._neg_view(-x) if x.is_floating_point() else x for x in case]
    assert views[0].is_neg()
    for got, expected, meta in zip(*(flat(function(*x)) for x in (views, case, on("meta", case))), strict=True):
        assert torch.equal(got, expected)
        assert (meta.device.type, meta.shape, meta.dtype) == ("meta", expected.shape, expected.dtype)


@pytest.mark.parametrize(("recording", "most"), [(False, 36), (True, 52)])
@pytest.mark.parametrize("op", ["memory_read", "memory_write", "masked_correlation"])
@pytest.mark.skipif(native.load() is None, reason=f"{native.why_missing()}")
def test_a_call_runs_little_python(op, recording, most):
    """The functions in Python that a call runs, of ours and of torch. They take most of the time of a small call."""
    function, case = CALLS[op][0], arguments(op, recording)
    function(*case)
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function(*case)
    finally:
        sys.setprofile(None)
    assert len(called) <= most, called


def test_compile_takes_new_sizes_without_compiling_again():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(correlate, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (20, 31, 40):
        q, k, v = torch.randn(3, 2, tokens, 6)
        hole = torch.rand(2, tokens) < 0.4
        assert_close(compiled(q, k, v, hole), correlate(q, k, v, hole))
    assert counter.frame_count == 1


def test_inductor(device):
    torch._dynamo.reset()

    def whole(latent, memory, region, query, hole):
        recalled = read(latent * 2, memory, region).relu()
        return recalled, correlate(query.sin(), query, query * 2, hole) + 1

    case = *memory_case(device), *image_case(1, device)
    for got, expected in zip(torch.compile(whole, fullgraph=True)(*case), whole(*case), strict=True):
        assert_close(got, expected)


class Operators(torch.nn.Module):
    def forward(self, latent, memory, region, query, hole):
        return read(latent, memory, region), correlate(query, query, query, hole)


def test_export():
    case = *memory_case(), *image_case(1)
    tokens = torch.export.Dim("tokens", min=2)
    shapes = {"latent": {0: tokens}, "memory": None, "region": {0: tokens}, "query": None, "hole": None}
    program = torch.export.export(Operators(), case, dynamic_shapes=shapes)
    assert "showface.masked_correlation" in str(program.graph)
    case = case[0][:7], case[1], case[2][:7], *case[3:]
    for got, expected in zip(program.module()(*case), Operators()(*case), strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("op", CALLS)
def test_autocast_leaves_float64_alone(device, op):
    function, make = CALLS[op]
    with torch.autocast(device, torch.bfloat16):
        assert {x.dtype for x in flat(function(*make(device, torch.float64)))} == {torch.float64}


def test_autocast_gives_gradients_in_the_inputs_dtype(device):
    latent, memory, region = memory_case(device)
    with torch.autocast(device, torch.bfloat16):
        out = read(latent.requires_grad_(), memory.requires_grad_(), region)
    out.float().sum().backward()
    assert latent.grad.dtype == memory.grad.dtype == torch.float32


def test_autocast_still_checks_devices_and_float64():
    latent, memory, region = memory_case()
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="memory must be on cpu"):
            read(latent, memory.to("meta"), region)
        with pytest.raises(TypeError, match=r"memory must be torch.float32 .*got torch.float64"):
            read(latent, memory.double(), region)
