"""The CUDA emulator: its results are right, and it detects errors in kernels."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.cuda_on_cpu import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")
ORDERS = range(6)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build.build("probes", build.PROBES)))


def run(library, name, values, size=None, *, threads=None, n=None, shared_bytes=0, order=0):
    """Run a probe. Returns its float32 output with `size` elements, which starts as NaN."""
    values = values.float().contiguous()
    out = torch.full((size or values.numel(),), torch.nan)
    library.cuda_on_cpu_order(ctypes.c_uint64(order))
    error = ctypes.create_string_buffer(256)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (values, out)]
    count = values.numel() if n is None else n
    if library.run_probe(name.encode(), *pointers, count, threads or values.numel(), shared_bytes, error):
        raise RuntimeError(error.value.decode())
    return out


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 31, 33, 64])
def test_shared_memory_and_barrier(library, size, order):
    values = torch.randn(size)
    assert torch.equal(run(library, "reverse", values, order=order), values.flip(0))


@pytest.mark.parametrize("order", ORDERS)
def test_collectives(library, order):
    values = torch.randint(-9, 10, (64,)).float()
    out = run(library, "collectives", values, 64, order=order)  # the probe adds the third number to NaN
    assert out[0] == values[:32].sum()
    assert out[1] == (values[:32] > 0).sum()
    assert out[3] == 32
    assert torch.equal(out[4:20], values[:16].roll(-1))


@pytest.mark.parametrize("name", ["reverse_race", "neighbour_race"])
def test_races_show_in_other_orders(library, name):
    values = torch.randn(64)
    results = [run(library, name, values, order=order) for order in ORDERS]
    assert any(not torch.equal(results[0], other) for other in results[1:])


def test_shared_memory_starts_as_nan(library):
    assert run(library, "uninitialised", torch.zeros(64)).isnan().all()


def test_waiting_for_ever_is_an_error(library):
    with pytest.raises(RuntimeError, match="wait for others that never come, in: __syncwarp"):
        run(library, "lonely_barrier", torch.zeros(64))


def test_asynchronous_copies(library):
    values = torch.randn(64)
    expected = torch.cat([values[:60], torch.zeros(4)])
    assert torch.equal(run(library, "copies", values, shared_bytes=256), expected)
    assert run(library, "copies_without_wait", values, shared_bytes=256).isnan().any()


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("kind", "depth"), [("float16", 16), ("bfloat16", 16), ("tf32", 8)])
def test_products_of_fragments(library, kind, depth, transposed):
    # Small integers are exact in every type, so the result must be exact too.
    a = torch.randint(-8, 9, (16, depth)).float()
    b = torch.randint(-8, 9, (16, depth) if transposed else (depth, 16)).float()
    values = torch.cat([a.flatten(), b.flatten()])
    options = {"threads": 32, "n": 0 if transposed else 1, "shared_bytes": 4 * 32 * depth}
    out = run(library, f"product_{kind}", values, 256, **options)
    assert torch.equal(out.view(16, 16), a @ (b.T if transposed else b))


def test_launches_that_no_chip_takes(library):
    with pytest.raises(RuntimeError, match="would fail"):
        run(library, "reverse", torch.zeros(64), threads=1025)


def sanitized(*arguments) -> subprocess.CompletedProcess:
    """Run sanitized.py with the sanitizer's library preloaded."""
    runtime = subprocess.check_output(["g++", "-print-file-name=libasan.so"], text=True).strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        # Python itself leaks memory, so leaks are not reported. Other errors must end the process.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(build.ROOT),
    }
    command = [sys.executable, str(Path(build.HERE) / "sanitized.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def sanitized_probes() -> Path:
    return build.build("probes", build.PROBES, sanitize=True)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("read_past_end", "heap-buffer-overflow"),
        ("write_past_dynamic", "heap-buffer-overflow"),
        ("write_past_member", "out of bounds"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_catch(sanitized_probes, name, complaint):
    done = sanitized("probe", sanitized_probes, name, 64, 64, 256)
    assert done.returncode != 0
    assert complaint in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["reverse", "collectives", "copies"])
def test_sanitizers_pass(sanitized_probes, name):
    done = sanitized("probe", sanitized_probes, name, 64, 64, 256)
    assert done.stdout == "clean\n", done.stderr[-2000:]


def test_kernels_are_clean():
    done = sanitized("kernels", build.build("kernels", build.KERNELS, sanitize=True))
    assert done.stdout == "clean\n", done.stderr[-2000:]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_fragments_use_tensor_cores(tmp_path):
    """Compiled with nvcc, the probes contain the matrix and asynchronous copy instructions."""
    ptx = tmp_path / "probe.ptx"
    include = Path(torch.__file__).parent / "include"
    command = ["nvcc", "-std=c++20", "-ptx", "-arch=compute_80", "-isystem", include, build.PROBES[0], "-o", ptx]
    subprocess.run(command, check=True)
    text = ptx.read_text()
    for instruction in ("f16.f16.f32", "bf16.bf16.f32", "tf32.tf32.f32", "ldmatrix", "cp.async.cg.shared.global"):
        assert instruction in text
