"""The native half: what was built, and the raw operators that it registers."""

import re
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path

import pytest
import torch
from tolerances import assert_close

from showface import info, native
from showface.ops import backends, definitions

extension = native.load()
needs_extension = pytest.mark.skipif(extension is None, reason=f"no extension: {native.why_missing()}")
needs_cuda_half = pytest.mark.skipif(native.why_no_cuda() is not None, reason=f"{native.why_no_cuda()}")


def problem(tokens, regions, slots, channels, device="cpu", dtype=torch.float32):
    if device == "cuda" and native.why_no_cuda():
        pytest.skip(native.why_no_cuda())
    generator = torch.Generator().manual_seed(tokens + slots)
    latent = torch.randn(tokens, channels, generator=generator).to(device, dtype)
    memory = torch.randn(regions, slots, channels, generator=generator).to(device, dtype)
    region = torch.randint(-1, regions, (tokens,), generator=generator).to(device)
    return latent, memory, region


def expected(latent, memory, region, temperature):
    return definitions.memory_read(latent.cpu().double(), memory.cpu().double(), region.cpu(), float(temperature))


def assert_reads(latent, memory, region, temperature=None, scale=8.0):
    out = torch.ops.showface_C.memory_read(latent, memory, region, temperature, scale)
    assert out.dtype == latent.dtype
    factor = 1.0 if temperature is None else temperature.item()
    assert_close(out, expected(latent, memory, region, scale * factor))
    assert not out[region < 0].any()


def test_load_and_its_reasons_agree():
    assert (native.load() is None) == isinstance(native.why_missing(), str)
    if native.load() is None:
        assert native.why_no_cuda() == native.why_missing()


@needs_extension
def test_build_info():
    built = extension.build_info()
    assert built["instruction_sets"][0] == "baseline"
    assert set(built["instruction_sets_here"]) <= set(built["instruction_sets"])
    assert built["cuda"] == (native.why_no_cuda() is None)
    assert built["cuda"] == bool(built["cuda_archs"]) == (built["cuda_version"] is not None)


def test_info_covers_every_operator(capsys):
    described = info.describe()
    assert described["extension"]["built"] == (extension is not None)
    assert set(described["operators"]) == set(backends.OPS)
    for by_device in described["operators"].values():
        for choice in by_device.values():
            assert choice["auto"] not in choice["why_not"]
    info.render(described)
    assert "memory_read" in capsys.readouterr().out


def test_info_without_extension(monkeypatch, capsys):
    monkeypatch.setattr(native, "_load", lambda: (None, "no C++ compiler was found"))
    info.render(info.describe())
    printed = " ".join(capsys.readouterr().out.split())
    assert "no C++ compiler was found" in printed


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("tokens", "regions", "slots", "channels"),
    [(1, 1, 1, 1), (63, 19, 5, 100), (129, 3, 64, 33), (100, 19, 130, 256), (1023, 2, 7, 600), (5, 2, 1500, 40)],
)
def test_memory_read(device, dtype, tokens, regions, slots, channels):
    assert_reads(*problem(tokens, regions, slots, channels, device, dtype))


@needs_cuda_half
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_memory_read_half(dtype):
    assert_reads(*problem(129, 19, 33, 100, "cuda", dtype))


@needs_cuda_half
@pytest.mark.gpu
def test_memory_read_runs_on_the_current_stream():
    latent, memory, region = problem(4096, 19, 64, 256, "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Long enough that a launch on another stream would read the latent before it is filled.
        late = torch.zeros_like(latent)
        torch.cuda._sleep(100_000_000)
        late.copy_(latent)
        out = torch.ops.showface_C.memory_read(late, memory, region, None, 8.0)
    stream.synchronize()
    assert_close(out, expected(latent, memory, region, 8.0))


@needs_extension
def test_memory_read_strided(device):
    latent, memory, region = problem(65, 4, 10, 48, device)
    strided_latent = latent.t().contiguous().t()
    strided_memory = memory.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided_region = region.repeat_interleave(2)[::2]
    assert not any(tensor.is_contiguous() for tensor in (strided_latent, strided_memory, strided_region))
    assert_reads(strided_latent, strided_memory, strided_region)
    # A slice whose rows lie further apart than they are long.
    assert_reads(latent[::2, 8:40], memory[:, ::3, 8:40], region[::2])


@needs_extension
@pytest.mark.parametrize("dtype", sorted(backends.FLOATS, key=str), ids=str)
def test_temperature_tensor(device, dtype):
    temperature = torch.tensor(2.5, dtype=dtype, device=device)
    assert_reads(*problem(20, 3, 8, 16, device), temperature=temperature, scale=1.5)


@needs_extension
def test_memory_read_edges(device):
    latent, memory, region = problem(6, 3, 8, 16, device)
    empty = torch.ops.showface_C.memory_read(latent[:0], memory, region[:0], None, 8.0)
    assert empty.shape == (0, 16)
    nowhere = torch.ops.showface_C.memory_read(latent, memory, torch.full_like(region, -1), None, 8.0)
    assert not nowhere.any()
    # A zero vector is as similar to every slot; a huge temperature must not overflow.
    assert_reads(torch.zeros_like(latent), memory, region)
    assert_reads(latent, memory, region, scale=1e4)


@needs_extension
def test_memory_read_refuses_what_it_cannot_hold():
    latent, memory, region = problem(6, 3, 8, 16)
    read = torch.ops.showface_C.memory_read
    with pytest.raises(RuntimeError, match=r"outside -1\.\.2"):
        read(latent, memory, torch.full_like(region, 3), None, 8.0)
    with pytest.raises(RuntimeError, match="channels"):
        read(latent[:, :8], memory, region, None, 8.0)
    with pytest.raises(RuntimeError, match=r"region must be \(T,\)"):
        read(latent, memory, region[:2], None, 8.0)
    with pytest.raises(RuntimeError, match="int64"):
        read(latent, memory, region.int(), None, 8.0)
    with pytest.raises(RuntimeError, match="differ in dtype"):
        read(latent, memory.double(), region, None, 8.0)
    with pytest.raises(RuntimeError, match="float32 and float64"):
        read(latent.half(), memory.half(), region, None, 8.0)


def cuobjdump():
    """NVIDIA's tool of that name, from the toolkit or from Triton's wheel."""
    found = shutil.which("cuobjdump")
    spec = util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    return found


@needs_cuda_half
@pytest.mark.skipif(cuobjdump() is None, reason="cuobjdump is not installed")
def test_cuda_code_is_there_for_every_architecture():
    wanted = extension.build_info()["cuda_archs"].split()
    listed = ""
    for flag in ("--list-elf", "--list-ptx"):
        command = [cuobjdump(), flag, extension.__file__]
        listed += subprocess.run(command, check=True, capture_output=True, text=True).stdout
    machine = {arch for arch in wanted if arch.startswith("sm_")}
    assert machine <= set(re.findall(r"(sm_\w+)\.cubin", listed))
    newest = next(arch for arch in wanted if arch.startswith("compute_")).removeprefix("compute_")
    assert re.search(rf"(sm|compute)_{newest}\.ptx", listed)


def test_wheel_holds_what_is_imported_and_nothing_else():
    # The checkout's own folder of metadata has no RECORD: it lists sources, not what was installed.
    installed = [found for found in metadata.distributions(name="showface") if found.read_text("RECORD")]
    files = [str(path) for path in installed[0].files or []] if installed else []
    if "showface/__init__.py" not in files:
        pytest.skip("showface is not installed from a wheel")
    for name in ("showface/kernels/memory.py", "showface/_build.json", "showface/assets/demo/mask.png"):
        assert name in files
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} <= {"showface", ".."}
