"""The choice of backends."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from showface import native, ops
from showface.ops import dispatch
from showface.ops.backends import cuda, triton

from support.cuda_on_cpu import build


def read(dtype: torch.dtype = torch.float32, **options):
    """Call `memory_read` with small inputs."""
    latent, memory = torch.randn(20, 6, dtype=dtype), torch.randn(3, 4, 6, dtype=dtype)
    return ops.memory_read(latent, memory, torch.randint(-1, 3, (20,)), temperature=8.0, **options)


@pytest.fixture
def capability(monkeypatch):
    """Sets the compute capability of the GPU that fake tensors are on."""
    triton._refuses_device.cache_clear()
    yield lambda *version: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
    triton._refuses_device.cache_clear()


@pytest.mark.parametrize(
    ("images", "tokens", "missing", "expected"),
    [(1, 512, "", "cuda"), (1, 8192, "", "triton"), (64, 2048, "", "triton"), (1, 512, "cuda", "triton")],
)
def test_little_work_on_a_gpu_prefers_the_extension(monkeypatch, capability, images, tokens, missing, expected):
    capability(9, 0)

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


def test_a_gpu_without_these_tensor_cores_takes_the_reference(monkeypatch, capability):
    capability(7, 5)
    monkeypatch.setattr(dispatch, "why_not", lambda op, backend, *_: None if backend != "cpp" else "it is for the CPU")
    monkeypatch.setattr(cuda, "_lacks_shared_memory", lambda *_: "no kernel image")
    with FakeTensorMode(allow_non_fake_inputs=True):
        features = torch.empty(2, 64, 16, device="cuda")
        found = dispatch.kernel("masked_correlation", "auto", features, features)
        assert found is dispatch._kernels["masked_correlation", "reference"]
        with pytest.raises(RuntimeError, match=r"need compute capability 8\.0, and this GPU has 7\.5"):
            dispatch.kernel("masked_correlation", "triton", features, features)


@pytest.mark.parametrize("op", dispatch.OPS)
def test_auto_always_finds_a_backend(op):
    for device_type in ("cpu", "cuda", "meta", "mps"):
        for dtype in dispatch.FLOATS:
            assert ops.why_not(op, ops.choose(op, device_type, dtype), device_type, dtype) is None
    assert ops.why_not(op, "reference", "cpu") is None


def test_reasons():
    assert "has no cuda kernel" in ops.why_not("coordination_loss", "cuda", "cpu")
    assert "do not take torch.int32" in ops.why_not("memory_read", "reference", "cpu", torch.int32)
    if dispatch._has_triton():
        assert "no float64 on a GPU" in ops.why_not("memory_read", "triton", "cuda", torch.float64)
        assert ops.choose("memory_read", "cuda") == "triton" != ops.choose("memory_read", "cuda", torch.float64)
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
        read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read()


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(native, "why_missing", lambda: "it was not built")
    with pytest.raises(RuntimeError, match=r"memory_read: backend 'cpp' can't run here: it was not built"):
        read(backend="cpp")


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


def test_kernels_that_were_compiled_for_other_gpus(monkeypatch, little_shared_memory):
    build.load().cuda_on_cpu_image(0)
    try:
        with pytest.raises(RuntimeError, match=r"its cuda kernels don't run on this device .*no kernel image"):
            read(backend="cuda")
        memory, rho = torch.ones(2, 3, 4), torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="its cuda kernels don't run on this device"):
            ops.memory_blend(memory, rho, memory, rate=0.1, backend="cuda")
        monkeypatch.setattr(dispatch, "BACKENDS", ("cuda", "reference"))
        assert read().isfinite().all()
    finally:
        build.load().cuda_on_cpu_image(1)


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


def test_the_choice_of_a_backend_is_kept(monkeypatch):
    asked = []
    ask = dispatch.why_not
    monkeypatch.setattr(dispatch, "why_not", lambda *args: asked.append(args) or ask(*args))
    for _ in range(2):
        read()
        assert len(asked) == len(dispatch.BACKENDS)
    read(torch.float64)
    assert len(asked) == 2 * len(dispatch.BACKENDS)


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
