"""Compile CUDA sources for the CPU with g++ and the emulator in cuda_runtime.h. Results are cached by content."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CACHE = ROOT / "build" / "cuda-on-cpu"
PROBES = [HERE / "probe.cu"]
# All CUDA kernels of the package, and the schemas of the operators.
KERNELS = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc" / "ops.cpp"]
LIBRARY = "showface_cuda_on_cpu"  # namespace of the operators, distinct from that of the extension
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]


@cache
def why_not() -> str | None:
    """Why the emulator cannot be compiled on this machine, or None."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"cuda_on_cpu needs Linux on x86-64, not {platform.system()} on {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    return None


@cache
def _state() -> str:
    """A digest of all files that a compiled library depends on."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in [*(ROOT / "csrc").rglob("*"), *HERE.glob("*")]:
        if path.is_file():
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build(name: str, sources: Sequence[Path], *, sanitize: bool = False) -> Path:
    """Compile the sources to a shared library, or find it in the cache.

    Raises:
        RuntimeError: with the compiler's first error.
    """
    folder = CACHE / _state()
    library = folder / f"{name}{'-sanitized' if sanitize else ''}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(library.with_suffix(".lock")):
        if not library.exists():
            _compile(library, sources, sanitize)
    return library


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock that the other processes of a test run wait for."""
    import fcntl  # here, since Windows has none, and imports this module for `why_not`

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(library: Path, sources: Sequence[Path], sanitize: bool) -> None:
    folder = library.parent
    torch_folder = Path(torch.__file__).parent
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-DSHOWFACE_LIBRARY={LIBRARY}"]
    flags += [f"-I{HERE}", "-isystem", str(torch_folder / "include"), *(SANITIZERS if sanitize else [])]

    def compile_one(source: Path) -> Path:
        target = folder / f"{library.stem}-{source.name}.{os.getpid()}.o"
        _run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    fresh = library.with_suffix(f".{os.getpid()}")
    link = ["-shared", *(SANITIZERS[:1] if sanitize else [])]
    if sources is not PROBES:
        link += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    _run(["g++", *map(str, objects), *link, "-o", str(fresh)])
    os.replace(fresh, library)
    for path in objects:
        path.unlink()


@cache
def load() -> ctypes.CDLL:
    """Load the CUDA kernels compiled for the CPU, as torch.ops.showface_cuda_on_cpu."""
    path = build("kernels", KERNELS)
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:500])
        raise RuntimeError(f"g++ failed: {first}")
