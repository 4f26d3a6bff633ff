"""Devices and backends that the tests run on, and the tiny networks that they share."""

import ctypes
import importlib
import os
import pkgutil
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from showface import MDRNets, MDRNetsConfig, native
from showface.ops import dispatch, why_not

from support.cuda_on_cpu import build
from support.networks import TINY, wake
from support.pictures import save_faces

pytest.register_assert_rewrite("support.operator_tests", "support.tolerances")

# Triton decides when a kernel is defined whether it is compiled or interpreted. Without a CUDA device the kernels are
# defined as interpreted ones; `backend` turns them on for the tests that ask for them, and only for these.
if find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import showface.kernels

    for _module in pkgutil.iter_modules(showface.kernels.__path__):
        importlib.import_module(f"showface.kernels.{_module.name}")
    del os.environ["TRITON_INTERPRET"]

# An interpreter takes its time. It computes bfloat16 in float32, and gradcheck goes through float64.
INTERPRETED = frozenset({torch.float32, torch.float16})
# It can't run there by design, which is no news.
IMPOSSIBLE = {("cuda", "cpp")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> object:
    """Skip, with the reason, the cases whose sizes a backend refuses, in the tests that go through all backends."""
    try:
        return (yield)
    except RuntimeError as error:
        if "backend" in getattr(item, "fixturenames", ()) and "can't run here: its " in str(error):
            pytest.skip(str(error))
        raise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `device` on each of them.

    One that takes `backend` too runs on every backend of its class's `op` there, and one that takes `dtype`, in every
    dtype of these.
    """
    if "backend" not in metafunc.fixturenames:
        if "device" in metafunc.fixturenames:
            metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
        return
    op = metafunc.cls.op
    cases = []
    # What is marked as a test for GPUs has nothing to say on a CPU.
    only_gpu = metafunc.definition.get_closest_marker("gpu")
    for device in ("cuda",) if only_gpu else ("cpu", "cuda"):
        for name in dispatch.BACKENDS:
            kernel = dispatch._kernels.get((op, name))
            if kernel is None or (device, name) in IMPOSSIBLE:
                continue
            marks = [pytest.mark.gpu] if device == "cuda" else []
            if "dtype" in metafunc.fixturenames:
                interpreted = (device, name) == ("cpu", "triton")
                dtypes = sorted(kernel.dtypes & INTERPRETED if interpreted else kernel.dtypes, key=str)
                cases += [pytest.param(device, (op, name), dtype, marks=marks) for dtype in dtypes]
            else:
                cases.append(pytest.param(device, (op, name), marks=marks))
    names = ["device", "backend"] + ["dtype"] * ("dtype" in metafunc.fixturenames)
    ids = ["-".join(str(value[1] if isinstance(value, tuple) else value) for value in case.values) for case in cases]
    metafunc.parametrize(names, cases, ids=ids, indirect=["backend"])


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a backend that runs here; the test is skipped, with the reason, where it can't.

    On a CPU, Triton kernels are interpreted, and CUDA kernels run compiled for it, sized for a large chip or for a tiny
    one, their threads in a random order that is another one at each launch. Fresh memory holds NaN.
    """
    op, name = request.param
    reason = None
    if name == "triton" and device == "cpu" and not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if name == "cuda" and device == "cpu":
        reason = build.why_not()
        if not reason:
            seed = zlib.crc32(request.node.name.encode())
            build.load().cuda_on_cpu_order(ctypes.c_uint64(seed | 1))
            build.load().cuda_on_cpu_multiprocessors(132 if seed & 2 else 1)
            monkeypatch.setitem(native.CUDA_LIBRARIES, "cpu", build.LIBRARY)
    reason = reason or why_not(op, name, device)
    if reason:
        pytest.skip(f"{op} on {name}: {reason}")
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what torch.empty gives
    yield name
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> MDRNetsConfig:
    """The smallest sizes that have every part."""
    return TINY


@pytest.fixture
def model(tiny: MDRNetsConfig) -> MDRNets:
    """A tiny random network in eval mode, no layer of it zero."""
    return wake(MDRNets(tiny)).eval()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of three small pictures."""
    return save_faces(tmp_path / "faces")
