"""The native half: what was built, and the raw operators that it registers."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest
import torch

from showface import info, native
from showface.ops import dispatch

extension = native.load()
needs_extension = pytest.mark.skipif(extension is None, reason=f"no extension: {native.why_missing()}")
needs_cuda_half = pytest.mark.skipif(native.why_no_cuda() is not None, reason=f"{native.why_no_cuda()}")


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
    assert set(described["operators"]) == set(dispatch.OPS)
    for by_device in described["operators"].values():
        for choice in by_device.values():
            assert choice["auto"] not in choice["why_not"]
    info.render(described)
    assert "memory_read" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["no C++ compiler was found", "error [with T = float] in [/usr/include/x.h]"])
def test_info_without_extension(monkeypatch, capsys, why):
    monkeypatch.setattr(native, "_load", lambda: (None, why))
    info.render(info.describe())
    printed = " ".join(capsys.readouterr().out.split())
    assert why in printed


@needs_extension
def test_kernels_ask_torch_for_memory():
    """Only memory from `aten::empty` is filled with NaN under deterministic algorithms, as the other tests rely on."""
    latent, memory, region = torch.randn(6, 16), torch.randn(3, 8, 16), torch.randint(-1, 3, (6,))
    query, hole = torch.randn(1, 6, 16), torch.tensor([[True, False] * 3])
    for results, op, case in (
        (2, "memory_attend", (latent, memory, None, region, None, 8.0, False)),
        (2, "memory_write", (latent, memory, region, None, 8.0, 0.1, False)),
        (2, "masked_correlation", (query, query, query, hole, None, 8.0, False, False)),
    ):
        with torch.profiler.profile() as profiler:
            getattr(torch.ops.showface_C, op)(*case)
        assert [event.name for event in profiler.events()].count("aten::empty") >= results, op


@needs_extension
@pytest.mark.parametrize("name", ["grad", "out", "lse"])
def test_backwards_refuse_what_is_not_of_their_forward(name):
    operators = torch.ops.showface_C
    latent, memory, region = torch.randn(6, 16), torch.randn(3, 8, 16), torch.randint(-1, 3, (6,))
    read = latent, memory, None, region
    image, hole = torch.randn(1, 6, 16), torch.tensor([[True, False] * 3])
    correlate = image, image, image, hole
    for op, case in (("memory_attend", read), ("masked_correlation", correlate)):
        flags = [False] * (2 if case is correlate else 1)
        out, lse = getattr(operators, op)(*case, None, 8.0, *flags)
        for wrong in (lambda x: x[..., :5], lambda x: x.double(), lambda x: x[None]):
            saved = {"grad": out, "out": out, "lse": lse}
            saved[name] = wrong(saved[name])
            grad, out_, lse_ = saved.values()
            with pytest.raises(RuntimeError, match=f"{op}_backward: the shape, dtype and device of {name}"):
                getattr(operators, f"{op}_backward")(grad, *case, out_, lse_, None, 8.0, *flags)


@needs_extension
def test_memory_kernels_refuse_what_would_leave_the_memory():
    latent, memory, region = torch.randn(6, 16), torch.randn(3, 8, 16), torch.randint(-1, 3, (6,))

    def read(latent, memory, region, temperature, scale):
        torch.ops.showface_C.memory_accumulate(latent, memory, region, temperature, scale, False)

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


@needs_extension
@pytest.mark.parametrize("instruction_set", extension.build_info()["instruction_sets_here"] if extension else [])
def test_kernels_of_every_instruction_set(instruction_set):
    """Also run kernels that this processor would not choose. A process chooses only once, so each needs its own."""
    program = """
import torch
from showface import native, ops
assert native.load().build_info()["instruction_sets_here"][-1] == "{}"
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 3.2e-2)):
    # Several tiles of queries and chunks of keys an image.
    tensors = [torch.randn(2, 700, width, dtype=dtype, requires_grad=True) for width in (21, 21, 13)]
    hole = torch.rand(2, 700) < 0.4
    memory, region = torch.randn(3, 9, 21, dtype=dtype), torch.randint(-1, 3, (700,))
    results = []
    for backend in ("cpp", "reference"):
        out = ops.masked_correlation(*tensors, hole, temperature=8.0, backend=backend)
        read = ops.memory_read(tensors[0][0], memory, region, temperature=8.0, backend=backend)
        results.append((out, read, *torch.autograd.grad(out.square().sum(), tensors)))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())
"""
    environment = {
        **os.environ,
        "SHOWFACE_INSTRUCTION_SET": instruction_set,
        "PYTHONPATH": str(Path(native.__file__).parent.parent),
    }
    subprocess.run([sys.executable, "-c", program.format(instruction_set)], env=environment, check=True)


def cuobjdump():
    """The path of NVIDIA's cuobjdump, from the CUDA toolkit or from Triton's wheel."""
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


@pytest.mark.parametrize("launcher", ["", "ccache ", "/usr/bin/env "])
def test_the_compiler_may_have_a_launcher(monkeypatch, launcher):
    import build_script

    monkeypatch.setenv("CXX", f"{launcher}g++ -O1")
    assert Path(build_script.load().find_compiler()).name == "g++"
