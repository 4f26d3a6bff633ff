"""The choice of backends, and the operators as torch sees them: opcheck, compile, export, autocast."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from showface import native, ops
from showface.ops import dispatch
from showface.ops.backends import cuda

from support.cuda_on_cpu import build
from support.operator_tests import on
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


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


# The choice of a backend.


@pytest.mark.parametrize(
    ("images", "tokens", "missing", "expected"),
    [(1, 512, "", "cuda"), (1, 8192, "", "triton"), (64, 2048, "", "triton"), (1, 512, "cuda", "triton")],
)
def test_little_work_on_a_gpu_prefers_the_extension(monkeypatch, images, tokens, missing, expected):
    def why_not(op, backend, *_):
        return "it is missing" if backend in ("cpp", missing) else None

    monkeypatch.setattr(dispatch, "why_not", why_not)
    monkeypatch.setattr(cuda, "_lacks_shared_memory", lambda *_: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        features = torch.empty(images, tokens, 64, device="cuda")
        found = dispatch.kernel("masked_correlation", "auto", features, features)
        assert found is dispatch._kernels["masked_correlation", expected]
        latent, memory = (torch.empty(*shape, 64, device="cuda") for shape in ((images * tokens,), (1, tokens)))
        found = dispatch.kernel("memory_read", "auto", latent, memory)
        assert found is dispatch._kernels["memory_read", expected]
    on_cpu = torch.empty(1, 512, 64)
    found = dispatch.kernel("masked_correlation", "auto", on_cpu, on_cpu)
    assert found is dispatch._kernels["masked_correlation", "triton"], "the rule is for GPUs"


@pytest.mark.parametrize("op", dispatch.OPS)
def test_auto_always_finds_a_backend(op):
    for device_type in ("cpu", "cuda", "meta", "mps"):
        for dtype in dispatch.FLOATS:
            assert ops.why_not(op, ops.choose(op, device_type, dtype), device_type, dtype) is None
    assert ops.why_not(op, "reference", "cpu") is None


def test_reasons():
    assert "has no cuda kernel" in ops.why_not("coordination_loss", "cuda", "cpu")
    assert "does not take torch.int32" in ops.why_not("memory_read", "reference", "cpu", torch.int32)
    assert "runs on cuda" in ops.why_not("memory_read", "triton", "mps") or not dispatch._has_triton()
    with pytest.raises(ValueError, match=r"op must be one of .*got 'memory'"):
        ops.why_not("memory", "cpp", "cpu")
    with pytest.raises(ValueError, match=r"backend must be .*got 'auto'"):
        ops.why_not("memory_read", "auto", "cpu")


@pytest.mark.parametrize(("missing", "reason"), [(None, None), ("it was not built", "it was not built")])
def test_cpp_runs_on_the_cpu_only_and_if_built(monkeypatch, missing, reason):
    monkeypatch.setattr(native, "why_missing", lambda: missing)
    assert ops.why_not("memory_read", "cpp", "cpu") == reason
    assert ops.why_not("memory_read", "cpp", "cuda") == (reason or "it runs on cpu, not cuda")


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in ops.why_not("memory_read", "triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.why_not("memory_read", "triton", "cpu") is None
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    assert ops.why_not("memory_read", "triton", "cpu") == "triton is not installed"


def test_missing_extension_is_told_once(monkeypatch):
    monkeypatch.setattr(native, "why_missing", lambda: "it was not built")
    dispatch._warn_if_not_compiled.cache_clear()
    with pytest.warns(UserWarning, match="without its compiled kernels: it was not built"):
        read(*memory_case())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(*memory_case())


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(native, "why_missing", lambda: "it was not built")
    with pytest.raises(RuntimeError, match=r"memory_read: backend 'cpp' can't run here: it was not built"):
        ops.memory_read(*memory_case(), temperature=8.0, backend="cpp")


@pytest.fixture
def little_shared_memory(monkeypatch):
    """The CUDA kernels run on the CPU, as on a GPU whose blocks have 99 KB of shared memory."""
    if build.why_not():
        pytest.skip(build.why_not())
    monkeypatch.setitem(native.CUDA_LIBRARIES, "cpu", build.LIBRARY)
    build.load().cuda_on_cpu_shared_bytes(99 << 10)
    cuda._lacks_shared_memory.cache_clear()
    yield
    cuda._lacks_shared_memory.cache_clear()


def test_sizes_that_a_kernel_refuses(monkeypatch, little_shared_memory):
    wide = [torch.randn(1, 5, 600) for _ in range(3)] + [torch.tensor([[True, False, True, False, True]])]
    with pytest.raises(
        RuntimeError,
        match=r"backend 'cuda' can't run here: its cuda kernel needs \d+ KB of shared memory for keys of 600 and "
        r"values of 600 float32 numbers, and this device has 99 KB",
    ):
        ops.masked_correlation(*wide, temperature=8.0, backend="cuda")
    with pytest.raises(RuntimeError, match="its cuda kernel takes up to 2,048 blocks, not 2,049"):
        ops.memory_read(torch.ones(1, 4), torch.ones(2049, 1, 4), torch.tensor([0]), temperature=8.0, backend="cuda")
    monkeypatch.setattr(dispatch, "BACKENDS", ("cuda", "reference"))
    reference = ops.masked_correlation(*wide, temperature=8.0, backend="reference")
    assert torch.equal(ops.masked_correlation(*wide, temperature=8.0), reference)


def test_a_gradient_that_a_named_backend_is_too_narrow_for_is_refused(little_shared_memory):
    """The gradient of a write reads values with an extra column. Only the named backend may compute it."""
    latent, memory = torch.randn(3, 384, requires_grad=True), torch.randn(2, 4, 384)
    region = torch.tensor([0, 1, -1])
    for op, more in ((ops.memory_write, {"rate": 0.1}), (ops.memory_accumulate, {})):
        out = op(latent, memory, region, temperature=8.0, backend="cuda", **more)[1]
        with pytest.raises(
            RuntimeError, match=rf"the gradient of showface.ops.{op.__name__}: backend 'cuda' can't run here: .* of 400"
        ):
            out.sum().backward()
        op(latent, memory, region, temperature=8.0, **more)[1].sum().backward()  # "auto" takes another


# The setters of torch that decide whether CUDA matrix products use tf32: the level of each, from the most specific,
# and its answer.
PRECISIONS = {
    'torch.set_float32_matmul_precision("highest")': (0, False),
    'torch.set_float32_matmul_precision("high")': (0, True),
    'torch.set_float32_matmul_precision("medium")': (0, True),
    "torch.backends.cuda.matmul.allow_tf32 = True": (0, True),
    "torch.backends.cuda.matmul.allow_tf32 = False": (0, False),
    'torch.backends.cuda.matmul.fp32_precision = "tf32"': (0, True),
    'torch.backends.cuda.matmul.fp32_precision = "ieee"': (0, False),
    'torch.backends.cuda.matmul.fp32_precision = "none"': (0, None),
    'torch.backends.cudnn.fp32_precision = "tf32"': (1, True),
    'torch.backends.fp32_precision = "tf32"': (2, True),
    'torch.backends.fp32_precision = "ieee"': (2, False),
    'torch.backends.mkldnn.matmul.fp32_precision = "bf16"': (3, None),
    'torch.backends.cudnn.conv.fp32_precision = "tf32"': (3, None),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case needs a process of its own, which is forked")
def test_tf32_follows_every_setting_of_torch():
    """Each pair of setters in turn. torch's older getters raise for many of them."""
    program = f"""
import os
import torch
from showface.native import allow_tf32
from showface.ops import masked_correlation
case = *torch.ones(3, 1, 2, 4), torch.tensor([[True, False]])
for first in {list(PRECISIONS)!r}:
    for second in {list(PRECISIONS)!r}:
        if os.fork() == 0:
            exec(first)
            exec(second)
            masked_correlation(*case, temperature=8.0)
            os.write(1, f"{{first}} | {{second}} | {{allow_tf32()}}\\n".encode())
            os._exit(0)
        os.wait()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(native.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(lines) == len(PRECISIONS) ** 2
    for *setters, got in lines:
        levels = {}
        for setter in setters:
            level, answer = PRECISIONS[setter]
            levels[level] = answer
        answers = [levels[level] for level in sorted(levels) if levels[level] is not None]
        assert got == str(bool(answers and answers[0])), setters


# The operators as torch sees them.


@pytest.mark.parametrize(
    "name",
    [
        "memory_read_rows",
        "memory_accumulate",
        "memory_write",
        "memory_blend",
        "masked_correlation_rows",
        "coordination_loss",
    ],
)
def test_opcheck_of_backwards(device, name):
    operator = getattr(torch.ops.showface, f"{name}_backward").default
    tau = torch.tensor(3.0, device=device)
    latent, memory, region = memory_case(device)
    mass = torch.rand(memory.shape[:2], device=device)
    if name == "memory_read_rows":
        results = torch.ops.showface.memory_read_rows(latent, memory, region, tau, 1.0)
        case = (latent, latent, memory, region, *results, tau, 1.0)
    elif name == "memory_accumulate":
        case = (mass, memory, latent, memory, region, tau, 1.0)
    elif name == "memory_write":
        case = (memory, mass, latent, memory, region, tau, 1.0, 0.1)
    elif name == "memory_blend":
        case = (memory, memory, mass, memory, 0.1)
    elif name == "masked_correlation_rows":
        case = image_case(3, device)
        results = torch.ops.showface.masked_correlation_rows(*case, tau, 1.0, "all")
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
    rows = {"memory_read": "memory_read_rows", "masked_correlation": "masked_correlation_rows"}.get(op, op)
    assert log.names.count(f"showface.{rows}.default") == 1
    assert log.names.count(f"showface.{rows}_backward.default") == recording


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


def test_the_choice_of_a_backend_is_kept(monkeypatch):
    asked = []
    ask = dispatch.why_not
    monkeypatch.setattr(dispatch, "why_not", lambda *args: asked.append(args) or ask(*args))
    for _ in range(2):
        read(*memory_case())
        assert len(asked) == len(dispatch.BACKENDS)
    read(*memory_case(dtype=torch.float64))
    assert len(asked) == 2 * len(dispatch.BACKENDS)


@pytest.mark.parametrize(("recording", "most"), [(False, 36), (True, 50)])
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
