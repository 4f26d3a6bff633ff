"""Build the native extension `showface._C`. Everything else about the package is in pyproject.toml.

The extension is optional. Its C++ half needs a C++20 compiler; its CUDA half also needs nvcc. Without them, showface
can still be installed, and runs on PyTorch and Triton. The build writes which half is missing, and the reason, to
`showface/_build.json`, which `showface.native` reads. Three environment variables control the build:

    SHOWFACE_BUILD_EXTENSION   unset: build it if possible.  1: fail if it can't be built.  0: leave it out.
    SHOWFACE_BUILD_CUDA        like SHOWFACE_BUILD_EXTENSION, for the CUDA half.
    SHOWFACE_CUDA_ARCHS        GPU architectures, by default "80;90"; PTX of the newest one is added for later GPUs.

The extension uses PyTorch's stable ABI, so one build works with every torch from 2.11 on.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
REPORT = "_build.json"
# The oldest torch whose stable ABI the sources use. It is also the run-time requirement in pyproject.toml.
MIN_TORCH = (2, 11)
MIN_NVCC = (12, 0)  # the first version that compiles C++20
DEFAULT_ARCHS = "80;90"
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc", "env")  # of compilers


class UnavailableError(Exception):
    """Something that the build needs is missing or has failed. The message is for the user."""


def switch(name: str) -> bool | None:
    """Read an environment variable: True for 1, False for 0, None if it is unset."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name} must be 0, 1 or unset, got {value!r}")
    return None if value == "" else value == "1"


def output_of(command: Sequence[str]) -> str | None:
    """Return what a command prints, or None if the command is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def find_torch() -> tuple[Path, str]:
    """Find the folder and the version of the torch to compile against, without importing it."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise UnavailableError("torch was not found in the environment that built showface")
    version = metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TORCH:
        raise UnavailableError(f"torch {version} is older than {MIN_TORCH[0]}.{MIN_TORCH[1]}, which the build needs")
    return Path(spec.origin).parent, version


def find_compiler() -> str:
    """Return the C++ compiler: $CXX if set, otherwise the first of the usual names that is found."""
    if sys.platform != "linux":
        raise UnavailableError(f"the compiled kernels are built on Linux only, not on {sys.platform}")
    # Without a launcher before it, as in CXX="ccache g++": nvcc takes only a compiler.
    chosen = [word for word in os.environ.get("CXX", "").split() if Path(word).name not in LAUNCHERS]
    names = chosen[:1] or ["c++", "g++", "clang++"]
    for name in names:
        path = shutil.which(name)
        if path and output_of([path, "--version"]):
            return path
    raise UnavailableError(f"no C++ compiler was found when showface was installed (looked for {', '.join(names)})")


def find_nvcc() -> tuple[str, str]:
    """The CUDA compiler and its version."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [f"{home}/bin/nvcc" for home in homes if home] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for place in places:
        path = shutil.which(place)
        found = re.search(r"release (\d+)\.(\d+)", output_of([path, "--version"]) or "") if path else None
        if path and found:
            major, minor = int(found[1]), int(found[2])
            if (major, minor) < MIN_NVCC:
                raise UnavailableError(f"nvcc {major}.{minor} is too old: {MIN_NVCC[0]}.{MIN_NVCC[1]} is needed")
            return path, f"{major}.{minor}"
    raise UnavailableError("no CUDA compiler (nvcc) was found when showface was installed")


def cuda_archs() -> list[str]:
    """The architectures to compile for, such as ["80", "90"], oldest first."""
    text = os.environ.get("SHOWFACE_CUDA_ARCHS") or DEFAULT_ARCHS
    archs = [arch.replace(".", "").removeprefix("sm_") for arch in re.split(r"[;,\s]+", text.strip())]
    if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        raise SystemExit(f'SHOWFACE_CUDA_ARCHS must be like "80;90", got {text!r}')
    return sorted(set(archs), key=lambda arch: int(arch.rstrip("af")))


def quote(words: Sequence[object]) -> str:
    """Join words into one shell command, escaped for a ninja file."""
    return shlex.join(str(word) for word in words).replace("$", "$$")


def ninja_path(path: Path) -> str:
    """Escape a path for a ninja file. Raises UnavailableError for a path that ninja can't hold."""
    if "\n" in str(path):
        raise UnavailableError(f"ninja can't build in a folder whose name has a line break: {str(path)!r}")
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(output: Path, objects: Path, nvcc: tuple[str, str] | None, library: str | None = None) -> str:
    """Return the text of a ninja file that compiles the sources in csrc/ in parallel and links `output`.

    With `library`, `output` is no Python module but a library for any Python, with its operators in that namespace.
    """
    import pybind11

    cxx = find_compiler()
    torch, torch_version = find_torch()
    # pybind11 first: torch bundles a copy, which older versions refuse to compile under TORCH_TARGET_VERSION.
    includes = [pybind11.get_include(), torch / "include", sysconfig.get_paths()["include"]]
    flags: list[object] = [
        "-std=c++20",
        "-O3",
        f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000",
        f'-DSHOWFACE_TORCH_HEADERS="{torch_version}"',
        *(word for include in includes for word in ("-isystem", include)),
    ]
    sources = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    if library is not None:
        flags.append(f"-DSHOWFACE_LIBRARY={library}")
        sources.remove(ROOT / "csrc" / "module.cpp")
    cxx_flags = [*flags, "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-fno-math-errno", "-Wall"]
    # Error messages name the headers: without the folder that they lie in, a build elsewhere has the same bytes.
    cxx_flags += [f"-ffile-prefix-map={include}=include" for include in includes]
    libraries = ["-L" + str(torch / "lib"), "-ltorch_cpu", "-lc10"]
    if nvcc is None:
        link = [cxx, "-shared"]
    else:
        archs = cuda_archs()
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        names = " ".join([f"sm_{arch}" for arch in archs] + [f"compute_{archs[-1]}"])
        cxx_flags += ["-DSHOWFACE_CUDA", f'-DSHOWFACE_CUDA_VERSION="{nvcc[1]}"', f'-DSHOWFACE_CUDA_ARCHS="{names}"']
        nvcc_flags = [*flags, "-ccbin", cxx, *codes, "--threads=2", "--expt-relaxed-constexpr", "-lineinfo"]
        nvcc_flags += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]
        sources += sorted(ROOT.glob("csrc/cuda/*.cu"))
        # Link the CUDA runtime statically, so that the extension loads beside a torch with any CUDA version, or without
        # CUDA.
        link = [nvcc[0], "-ccbin", cxx, "-shared", "-cudart=static"]
        libraries += ["-ldl"]

    escaped = ninja_path(objects)
    lines = [
        f"builddir = {escaped}",  # the folder for ninja's own log
        f"rule cpp\n  command = {quote([cxx, *cxx_flags])} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc\n  description = C++ $in",
        f"rule link\n  command = {quote(link)} $in {quote(libraries)} -o $out\n  description = link $out",
    ]
    if nvcc is not None:
        lines += [
            f"rule cu\n  command = {quote([nvcc[0], *nvcc_flags])} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc\n  description = CUDA $in",
        ]
    built = []
    for source in sources:
        # Use relative paths, because __FILE__ appears in error messages.
        relative = source.relative_to(ROOT)
        built.append(f"{escaped}/{relative}.o")
        lines.append(f"build {built[-1]}: {relative.suffix[1:]} {relative}")
    lines.append(f"build {ninja_path(output)}: link {' '.join(built)}")
    return "\n".join(lines) + "\n"


def compile_extension(output: Path, objects: Path, nvcc: tuple[str, str] | None, library: str | None = None) -> None:
    """Compile and link `output`, see `ninja_file`. Raises UnavailableError with the compiler's first error."""
    text = ninja_file(output, objects, nvcc, library)
    objects.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    (objects / "build.ninja").write_text(text)
    command = [sys.executable, "-m", "ninja", "-f", str(objects / "build.ninja")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines()]
        first = next((line for line in lines if re.search(r"\b(error|fatal)\b|No module named", line)), "")
        kind = "C++" if nvcc is None else "C++ or CUDA"
        raise UnavailableError(f"the {kind} sources failed to compile or link" + (f" ({first})" if first else ""))
    if not output.is_file():
        raise UnavailableError(f"ninja reported success, but there is no {output}")


def place(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source` with a rename. A process that has loaded the old file keeps it intact."""
    if source != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy2(source, fresh)
        os.replace(fresh, target)


class BuildExtension(build_ext):
    """Builds as much of `showface._C` as this machine can, and reports what it could not build."""

    def run(self) -> None:
        package = Path(self.build_lib).resolve() / "showface"
        extension = package / Path(self.get_ext_filename("_C")).name
        checkout = ROOT / "showface"
        extension.unlink(missing_ok=True)

        report = self.build(extension)
        report_file = package / REPORT
        report_file.parent.mkdir(parents=True, exist_ok=True)
        report_file.write_text(json.dumps(report, indent=2) + "\n")

        # Copy the files into the checkout too, so that Python started there imports what was installed. If the
        # checkout is not writable, skip this.
        try:
            place(report_file, checkout / REPORT)
            if extension.exists():
                place(extension, checkout / extension.name)
            else:
                (checkout / extension.name).unlink(missing_ok=True)
        except OSError as error:
            print(f"showface: not copied into the checkout: {error}", file=sys.stderr)

    def build(self, output: Path) -> dict[str, str | None]:
        """Build what can be built. Returns for each half the reason why it is missing, or None if it was built."""
        want, want_cuda = switch("SHOWFACE_BUILD_EXTENSION"), switch("SHOWFACE_BUILD_CUDA")
        objects = Path(self.build_temp).resolve() / "csrc-objects"
        report: dict[str, str | None] = {"why_no_extension": None, "why_no_cuda": None}
        try:
            if want is False:
                raise UnavailableError("SHOWFACE_BUILD_EXTENSION=0 was set when showface was installed")
            nvcc = None
            try:
                if want_cuda is False:
                    raise UnavailableError("SHOWFACE_BUILD_CUDA=0 was set when showface was installed")
                find_compiler()
                nvcc = find_nvcc()
                compile_extension(output, objects / "cuda", nvcc)
            except UnavailableError as why:
                if want_cuda:
                    raise SystemExit(f"SHOWFACE_BUILD_CUDA=1, but {why}") from why
                report["why_no_cuda"] = str(why)
                compile_extension(output, objects / "cpu", None)
        except UnavailableError as why:
            if want:
                raise SystemExit(f"SHOWFACE_BUILD_EXTENSION=1, but {why}") from why
            report = {"why_no_extension": str(why), "why_no_cuda": str(why)}
        for part, why_not in report.items():
            print(f"showface: {part.removeprefix('why_no_')}: {why_not or 'built'}", file=sys.stderr, flush=True)
        return report

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "showface"
        return [str(path) for path in (*package.glob("_C*"), package / REPORT) if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {path: str(ROOT / "showface" / Path(path).name) for path in self.get_outputs()}


class BuildPython(build_py):
    """Deletes old build results first, so that a file removed from the sources is not installed."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "showface", ignore_errors=True)
        super().run()
        # The page about the bundled models is also the model card that `showface push` writes.
        card = ROOT / "docs" / "default-model.md"
        if card.is_file() and not self.editable_mode:
            place(card, Path(self.build_lib) / "showface" / "assets" / card.name)


# tools/build_script.py imports the functions above.
if __name__ == "__main__":
    # setuptools loads the entry points of all installed packages, also of Hugging Face's package `kernels`, which the
    # folder of that name would hide.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]
    setup(
        packages=[*find_packages(include=["showface", "showface.*"]), "showface.kernels"],
        # Marks the wheel as specific to this platform and Python version. BuildExtension finds the sources itself.
        ext_modules=[Extension("showface._C", sources=[])],
        cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    )
