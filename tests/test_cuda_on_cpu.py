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


@pytest.mark.parametrize("transposed", [True, False])
def test_operands_of_tf32_are_rounded_to_the_nearest(library, transposed):
    a, b = torch.randn(16, 8), torch.randn(16, 8) if transposed else torch.randn(8, 16)
    values = torch.cat([a.flatten(), b.flatten()])
    options = {"threads": 32, "n": 0 if transposed else 1, "shared_bytes": 1024}
    out = run(library, "product_tf32", values, 256, **options).view(16, 16)
    nearest = [((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double() for x in (a, b)]
    # Rounded to the nearest, not cut off: that would be wrong by up to 1e-3.
    expected = nearest[0] @ (nearest[1].T if transposed else nearest[1])
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1])
@pytest.mark.parametrize("place", [0, 128], ids=["a", "b"])
def test_nan_stays_nan_in_tf32(library, bits, place):
    """0x7fffffff is the NaN that a GPU computes. Rounding by integer arithmetic makes it -0."""
    values = torch.ones(256)
    values.view(torch.int32)[place] = bits
    out = run(library, "product_tf32", values, 256, threads=32, n=0, shared_bytes=1024).view(16, 16)
    assert out[0].isnan().all() if place == 0 else out[:, 0].isnan().all()
    assert out[1:, 1:].isfinite().all()


def test_ldmatrix_does_not_wait_for_what_other_lanes_write(library):
    values = torch.ones(512)
    options = {"threads": 32, "n": 0, "shared_bytes": 2048}
    assert torch.equal(run(library, "product_bfloat16", values, 256, **options), torch.full((256,), 16.0))
    assert run(library, "product_without_wait", values, 256, **options).isnan().any()


@pytest.mark.parametrize("tokens", [1, 31, 64, 65, 200, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_list_of_tokens(library, tokens, share):
    hole = torch.rand(tokens) < share
    out = run(library, "list_tokens", hole.float(), 2 * tokens, threads=64, n=tokens, shared_bytes=4 * tokens + 8)
    assert torch.equal(out[:tokens].long(), torch.cat([hole.nonzero(), (~hole).nonzero()]).squeeze(1))
    # Neighbouring tokens are read by neighbouring lanes at the same time.
    assert all((times == times[0]).all() for times in out[tokens:].split(32))


def test_launches_that_no_chip_takes(library):
    with pytest.raises(RuntimeError, match="would fail"):
        run(library, "reverse", torch.zeros(64), threads=1025)


def test_a_block_finds_its_tile_in_few_steps():
    """The number of steps doesn't grow with the number of regions."""
    kernels = build.load()
    kernels.cuda_on_cpu_collectives.restype = ctypes.c_uint64
    latent, region, regions = torch.randn(40, 16), torch.full((40,), 1234), 1500
    before = kernels.cuda_on_cpu_collectives()
    torch.ops.showface_cuda_on_cpu.memory_attend(latent, torch.randn(regions, 1, 16), None, region, None, 8.0, False)
    warps = 4 * (regions + 1 + 40 // 16)
    assert kernels.cuda_on_cpu_collectives() - before < 8 * warps


@pytest.mark.parametrize("limit", [99, 227])
def test_shared_memory_is_limited(library, limit):
    library.cuda_on_cpu_shared_bytes(limit << 10)
    values = torch.randn(64)
    assert torch.equal(run(library, "copies", values, shared_bytes=limit << 10)[:60], values[:60])
    with pytest.raises(RuntimeError, match="invalid argument"):
        run(library, "copies", values, shared_bytes=(limit << 10) + 1)
    library.cuda_on_cpu_shared_bytes(227 << 10)


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
    for instruction in (
        "f16.f16.f32",
        "bf16.bf16.f32",
        "tf32.tf32.f32",
        "ldmatrix",
        "cp.async.cg.shared.global",
        "cvt.rna.tf32",
    ):
        assert instruction in text
