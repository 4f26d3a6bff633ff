"""Devices and backends that the tests run on, and the tiny networks that they share."""

import ctypes
import importlib
import os
import pkgutil
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from showface import MDRNets, MDRNetsConfig, cli, native
from showface.ops import dispatch, why_not
from showface.ops.backends import cuda

from support.backends import dtypes_of
from support.cuda_on_cpu import build
from support.networks import TINY, wake
from support.page import Visitor, chromium, serving
from support.pictures import save_faces

pytest.register_assert_rewrite("support.operator_tests", "support.tolerances")

# When a kernel is defined, Triton decides whether it is compiled or interpreted. Without a CUDA device, kernels are
# defined as interpreted. The fixture `backend` enables them only for tests that use it.
if find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import showface.kernels

    for _module in pkgutil.iter_modules(showface.kernels.__path__):
        importlib.import_module(f"showface.kernels.{_module.name}")
    del os.environ["TRITON_INTERPRET"]

# Kilobytes of shared memory of a block: the emulated GPU is sm_90, or one like sm_86, sm_89 and sm_120.
SHARED_MEMORY = (227, 99)
# (device, backend) pairs that can't run by design, so they are not reported as skipped.
IMPOSSIBLE = {("cuda", "cpp")}
# The reasons for leaving out tests, as printed in the summary, and the key of their counts.
GPU, LONG = "they need a CUDA device", "they are in the long list, which `-m long` runs"
BROWSER = "they need Playwright, Chromium and the extra `app`"
LEFT_OUT = pytest.StashKey[dict[str, int]]()
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run all tests on all cores. If tests are named, use one process, since starting more takes too long.

    `-n 0` runs all tests in one process, and `-n 2` runs any tests in two.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        # A worker reads the command line, where --dist is missing, so it would not tell the groups of `shared`.
        config.option.loadgroup = True
        return  # a worker process must not start workers
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS and not config.option.keyword
    single = config.option.collectonly or config.option.usepdb or torch.cuda.is_available()
    if whole and not single and getattr(config.option, "numprocesses", 0) is None and config.option.dist == "no":
        config.option.numprocesses = min(PROCESSORS, 8) if PROCESSORS > 1 else 0
    workers = getattr(config.option, "numprocesses", None)
    if workers:
        # The workers share the cores, so a waiting thread must not keep a core busy.
        threads = max(1, PROCESSORS // workers) if isinstance(workers, int) else 1
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        config.option.dist = "loadgroup" if config.option.dist == "no" else config.option.dist
        config.option.benchmark_disable = True  # otherwise pytest-benchmark warns in each worker


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that need a GPU or a browser if there is none, and the long list unless -m selects it."""
    kept, left_out = [], {GPU: [], LONG: [], BROWSER: []}
    has_browser = shutil.which("chromium") and all(find_spec(name) for name in ("playwright", "fastapi", "uvicorn"))
    for item in items:
        group = item.get_closest_marker("shared")
        if group is not None and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(*group.args))
        if is_long(item):
            item.add_marker(pytest.mark.long)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            left_out[GPU].append(item)
        elif "long" in item.keywords and "long" not in config.option.markexpr:
            left_out[LONG].append(item)
        elif "browser" in item.keywords and not has_browser:
            left_out[BROWSER].append(item)
        else:
            kept.append(item)
    config.stash[LEFT_OUT] = {reason: len(found) for reason, found in left_out.items() if found}
    config.hook.pytest_deselected(items=[item for found in left_out.values() for item in found])
    items[:] = kept


def is_long(item: pytest.Item) -> bool:
    """Return whether an operator's test class runs this case only in the long list."""
    case = item.callspec.params if hasattr(item, "callspec") else {}
    if "backend" not in case or "device" not in case or not hasattr(item.cls, "is_long"):
        return False
    return item.cls.is_long(item.originalname, case)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's counts to the controller process, which does not collect tests itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts from any worker, because all workers collect the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for reason, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{count:,} tests were left out: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> object:
    """In tests that run on all backends, skip cases whose sizes the backend refuses, and show the reason."""
    try:
        return (yield)
    except RuntimeError as error:
        if "backend" in getattr(item, "fixturenames", ()) and "can't run here: its " in str(error):
            pytest.skip(str(error))
        raise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `device` on every device.

    If it also takes `backend`, it runs on every backend of its class's `op` on that device, and on emulated GPUs with
    much and with little shared memory. If it also takes `dtype`, it runs in every dtype of that backend.
    """
    if "backend" not in metafunc.fixturenames:
        if "device" in metafunc.fixturenames:
            metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
        return
    op = metafunc.cls.op
    cases = []
    # Tests marked `gpu` don't run on a CPU.
    only_gpu = metafunc.definition.get_closest_marker("gpu")
    for device in ("cuda",) if only_gpu else ("cpu", "cuda"):
        for name in dispatch.BACKENDS:
            kernel = dispatch._kernels.get((op, name))
            if kernel is None or (device, name) in IMPOSSIBLE:
                continue
            marks = [pytest.mark.gpu] if device == "cuda" else []
            dtypes = dtypes_of(name, device)
            for kilobytes in SHARED_MEMORY if (device, name) == ("cpu", "cuda") else (None,):
                case = f"{device}-{name}" + (f"-{kilobytes}KB" if kilobytes == SHARED_MEMORY[1] else "")
                where = device, (op, name, kilobytes)
                if "dtype" in metafunc.fixturenames:
                    cases += [pytest.param(*where, dtype, marks=marks, id=f"{case}-{dtype}") for dtype in dtypes]
                else:
                    cases.append(pytest.param(*where, marks=marks, id=case))
    names = ["device", "backend"] + ["dtype"] * ("dtype" in metafunc.fixturenames)
    metafunc.parametrize(names, cases, indirect=["backend"])


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a backend. If the backend can't run here, the test is skipped, with the reason.

    On a CPU, Triton kernels are interpreted. CUDA kernels are compiled for the CPU, with launch sizes for a large or a
    tiny chip; each launch runs its threads in a new random order. New memory is filled with NaN.
    """
    op, name, kilobytes = request.param
    reason = None
    if name == "triton" and device == "cpu" and not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if name == "cuda" and device == "cpu":
        reason = build.why_not()
        if not reason:
            seed = zlib.crc32(request.node.name.encode())
            build.load().cuda_on_cpu_order(ctypes.c_uint64(seed | 1))
            build.load().cuda_on_cpu_multiprocessors(132 if seed & 2 else 1)
            build.load().cuda_on_cpu_shared_bytes(kilobytes << 10)
            cuda._lacks_shared_memory.cache_clear()
            monkeypatch.setitem(native.CUDA_LIBRARIES, "cpu", build.LIBRARY)
    reason = reason or why_not(op, name, device)
    if reason:
        pytest.skip(f"{op} on {name}: {reason}")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors of torch.empty with NaN
    threads = torch.get_num_threads()
    if name == "cpp":
        torch.set_num_threads(max(2, threads))  # so that the kernels always divide their work
    yield name
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    dispatch._able.cache_clear()  # the tests change what it depends on


@pytest.fixture
def tiny() -> MDRNetsConfig:
    """The smallest configuration that has every part."""
    return TINY


@pytest.fixture
def model(tiny: MDRNetsConfig) -> MDRNets:
    """A tiny random network in eval mode, in which no layer is zero."""
    return wake(MDRNets(tiny)).eval()


@pytest.fixture
def folder(model: MDRNets, tmp_path: Path) -> Path:
    """A saved model."""
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def page_address() -> Iterator[str]:
    """The address of the app with the bundled models."""
    with serving() as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any, page_address: str) -> Iterator[Callable[..., Visitor]]:
    """Open the page. At the end of the test, nothing may have gone wrong in it."""
    visitors = []

    def start(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, options.pop("address", page_address), **options))
        return visitors[-1]

    yield start
    for visitor in visitors:
        visitor.context.close()
        visitor.check()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of three small pictures."""
    return save_faces(tmp_path / "faces")


@pytest.fixture
def showface(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in an empty folder; returns the exit code, stdout and stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["showface", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="showface runs without its compiled kernels")
            with pytest.raises(SystemExit) as stop:
                cli.main()
        return stop.value.code, *capsys.readouterr()

    return run
