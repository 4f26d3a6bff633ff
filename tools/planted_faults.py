"""Plant faults in a copy of the source tree, one at a time, and check that the short list of tests catches each one.

    python tools/planted_faults.py [NAME ...] [--check-texts]

Needs the same packages as the tests, and a C++ compiler for the faults in `csrc/cpu`. Prints a Markdown table with the
fault, the first test that fails, and the seconds until it failed. With NAMEs, plants only faults whose name contains
one of them. The exit status is 1 if a fault was missed or a text was not found.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "results", "shared", "runs", "*.egg-info")


@dataclass(frozen=True)
class Fault:
    """A replacement for a text that occurs exactly once in its file, and the tests that must catch it."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str  # arguments of pytest


MEMORY, CORRELATION = "tests/test_ops_memory.py", "tests/test_ops_masked_correlation.py"
GATE = "tests/test_triton_compile.py"
FAULTS = [
    # A wrong sign in a backward pass, for each backend.
    Fault(
        "reference: sign in the gradient of unit vectors",
        "showface/ops/backends/reference.py",
        "return (grad - delta * x) / norm",
        "return (grad + delta * x) / norm",
        f"{MEMORY} {CORRELATION} -k cpu-reference",
    ),
    Fault(
        "cpp: sign in the gradient of scores",
        "csrc/cpu/attention_tiles.h",
        "power * (S::load(grad) - S::load(tile.delta + r))",
        "power * (S::load(grad) + S::load(tile.delta + r))",
        f"{MEMORY} {CORRELATION} -k cpu-cpp",
    ),
    Fault(
        "triton: sign in the gradient of unit vectors",
        "kernels/rows.py",
        "return (grad - rows * projection[:, None]) * inverse[:, None]",
        "return (grad + rows * projection[:, None]) * inverse[:, None]",
        f"{MEMORY} -k cpu-triton",
    ),
    Fault(
        "cuda: sign in the gradient of unit vectors",
        "csrc/cuda/attention_backward.cuh",
        "(sum[tile].x[i] - unit * project)",
        "(sum[tile].x[i] + unit * project)",
        f"{CORRELATION} -k cpu-cuda",
    ),
    # Memory and threads.
    Fault(
        "triton: a masked load without a fill",
        "kernels/rows.py",
        "mask=valid[:, None] & (c < width)[None, :], other=0.0)",
        "mask=valid[:, None] & (c < width)[None, :])",
        f"{GATE} -k fills",
    ),
    Fault(
        "triton: a tile with too many warps for its rows",
        "kernels/tiles.py",
        "64: Tile(64, 64, 64, 64, 4, 3),",
        "64: Tile(32, 64, 64, 64, 8, 3),",
        f"{GATE} -k bound",
    ),
    Fault(
        "triton: rows past the end count as keys",
        "kernels/attention.py",
        'score = score * key_inverse[None, :] + tl.where(valid, 0.0, -float("inf"))[None, :]',
        "score = score * key_inverse[None, :]",
        f"{MEMORY} -k cpu-triton",
    ),
    Fault(
        "triton: the last piece of a tile is left out",
        "kernels/combine.py",
        "for number in range(pieces):\n            partials",
        "for number in range(pieces - 1):\n            partials",
        f"{CORRELATION} -k cpu-triton and gradient",
    ),
    Fault(
        "triton: pieces of a tile overlap",
        "kernels/work.py",
        "stop = tl.minimum((piece + 1) * units // pieces * BLOCK_COLUMNS, columns)",
        "stop = tl.minimum((piece + 2) * units // pieces * BLOCK_COLUMNS, columns)",
        "tests/test_work_list.py -k every_row",
    ),
    Fault(
        "cuda: no barrier before the counting of tokens",
        "csrc/cuda/token_lists.cuh",
        "counts[i] = 0;\n  __syncthreads();\n  const int each",
        "counts[i] = 0;\n  const int each",
        f"{MEMORY} -k cpu-cuda",
    ),
    # In half precision ldmatrix reads the weights, which is itself a collective but waits for no memory.
    Fault(
        "cuda: the forward reads weights before other lanes wrote them",
        "csrc/cuda/attention_forward.cuh",
        "    __syncwarp();\n    if (value_tiles > 0) {",
        "    if (value_tiles > 0) {",
        f"{CORRELATION} -k cpu-cuda and bfloat16",
    ),
    Fault(
        "cuda: the backward reads weights before other lanes wrote them",
        "csrc/cuda/attention_backward.cuh",
        "    __syncwarp();\n    if constexpr (gradients) {",
        "    if constexpr (gradients) {",
        f"{CORRELATION} -k cpu-cuda and bfloat16",
    ),
    Fault(
        "cuda: tf32 is rounded by integers, which loses NaN",
        "csrc/cuda/mma.h",
        "return is_nan ? 0x7fffffffu : (bits + 0x1000u) & ~0x1fffu;",
        "return (bits + 0x1000u) & ~0x1fffu;",
        f"{CORRELATION} -k cpu-cuda",
    ),
    Fault(
        "cuda: a tile is larger than the shared memory of a small GPU",
        "csrc/cuda/attention.cu",
        "const size_t most = call.shared_bytes;",
        "const size_t most = 163 << 10;",
        f"{CORRELATION} -k cpu-cuda-99KB",
    ),
    Fault(
        "triton: a region of 2**32 is region 0",
        "kernels/tokens.py",
        "    group = tl.load(group_ptr + i, mask=i < tokens, other=0)\n",
        "    group = tl.load(group_ptr + i, mask=i < tokens, other=0).to(tl.int32)\n",
        f"{MEMORY} -k cpu-triton",
    ),
    Fault(
        "cuda: every block sums the temperature's gradient in one place",
        "csrc/cuda/attention_backward.cuh",
        "s.temperature[blockIdx.z * gridDim.x + blockIdx.x] = all;",
        "s.temperature[0] = all;",
        f"{CORRELATION} -k cpu-cuda",
    ),
    # Wrong results.
    Fault(
        "triton: softmax to base 2 without log2(e)",
        "kernels/attention.py",
        "temperature = load_temperature(temperature_ptr, scale, ACCUMULATE) * LOG2_E",
        "temperature = load_temperature(temperature_ptr, scale, ACCUMULATE)",
        f"{MEMORY} -k cpu-triton",
    ),
    Fault(
        "cuda: softmax to base 2 without log2(e)",
        "csrc/cuda/attention_forward.cuh",
        "const A temperature = p.temperature_here() * A(kLog2E);",
        "const A temperature = p.temperature_here();",
        f"{MEMORY} -k cpu-cuda",
    ),
    Fault(
        "triton: the hole is inverted",
        "kernels/tokens.py",
        "group = 1 - group.to(tl.int32)",
        "group = group.to(tl.int32)",
        f"{CORRELATION} -k cpu-triton",
    ),
    Fault(
        "reference: the hole is inverted",
        "showface/ops/backends/reference.py",
        'return ~hole if keys == "valid"',
        'return hole if keys == "valid"',
        f"{CORRELATION} -k cpu-reference",
    ),
    Fault(
        "reference: tokens of region -1 are written to block 0",
        "showface/ops/backends/reference.py",
        "(region == k).nonzero()",
        "(region.clamp_min(0) == k).nonzero()",
        f"{MEMORY} -k cpu-reference",
    ),
    Fault(
        "triton: tokens of region -1 are of region 0",
        "kernels/tokens.py",
        "group = tl.where((group >= 0) & (group < groups), group, groups).to(tl.int32)",
        "group = tl.where(group < groups, tl.maximum(group, 0), groups).to(tl.int32)",
        f"{MEMORY} -k cpu-triton",
    ),
    Fault(
        "cuda: the memory moves away from what is written",
        "csrc/cuda/attention_combine.cuh",
        "wide - expm1(weight * log_keep)",
        "wide + expm1(weight * log_keep)",
        f"{MEMORY} -k cpu-cuda",
    ),
    Fault(
        "triton: a wrong gain of the memory's average",
        "kernels/memory.py",
        "series = 1 + series * small / (19 - i)",
        "series = 1 + series * small / (20 - i)",
        f"{MEMORY} -k cpu-triton",
    ),
]


def copy_tree(target: Path) -> None:
    """Copy the source tree with its build results, so that a fault in C++ recompiles only the files that need it."""
    for source in ("showface", "kernels", "csrc", "tests", "tools", "benchmarks", "experiments", "build"):
        if (ROOT / source).exists():
            shutil.copytree(ROOT / source, target / source, ignore=LEFT_BEHIND, symlinks=True)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, target)


def plant(tree: Path, fault: Fault) -> None:
    """Replace the text of a fault. Raises ValueError unless the text occurs exactly once."""
    path = tree / fault.file
    text = path.read_text()
    if (times := text.count(fault.right)) != 1:
        raise ValueError(f"{fault.name}: {fault.file} has {times} times, not once: {fault.right!r}")
    path.write_text(text.replace(fault.right, fault.wrong))


def build_extension(tree: Path, settings: Mapping[str, str] = {}) -> None:
    """Compile the C++ half of the extension in a copy of the tree; `settings` are more environment variables."""
    environment = os.environ | {"SHOWFACE_BUILD_CUDA": "0"} | settings
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the extension does not build:\n{done.stderr[-2000:]}")


def run_tests(tree: Path, tests: str) -> tuple[str | None, float]:
    """Return the first test that fails, or None, and the seconds that the run took."""
    files, _, wanted = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *files.split()]
    command += ["-k", wanted] if wanted else []
    environment = os.environ | {"PYTHONPATH": str(tree), "TRITON_CACHE_DIR": str(tree / ".triton")}
    begin = time.monotonic()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    if done.returncode == 0:
        return None, seconds
    found = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:  # an ERROR does not count: code that does not compile proves nothing
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1], seconds


def check(tree: Path, fault: Fault) -> tuple[str | None, float]:
    """Plant a fault, return the test that catches it and the seconds, and restore the tree."""
    plant(tree, fault)
    try:
        begin = time.monotonic()
        if fault.file.startswith("csrc/cpu"):
            build_extension(tree)
        built = time.monotonic() - begin
        caught_by, seconds = run_tests(tree, fault.tests)
        return caught_by, built + seconds
    finally:
        shutil.copy(ROOT / fault.file, tree / fault.file)  # with a new timestamp, so that it is compiled again
        for library in (ROOT / "showface").glob("_C*"):
            shutil.copy2(library, tree / "showface")


def report(faults: Iterable[Fault]) -> bool:
    """Print a row for each fault. Returns whether all were caught; a fault whose tests can't run counts as missed."""
    caught_all = True
    print("| fault | caught by | seconds |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        for fault in faults:
            try:
                caught_by, seconds = check(tree, fault)
            except RuntimeError as error:
                print(f"{fault.name}: {error}", file=sys.stderr)
                caught_by, seconds = None, 0.0
            caught_all &= caught_by is not None
            name = "**nothing**" if caught_by is None else f"`{caught_by.removeprefix('tests/')}`"
            print(f"| {fault.name} | {name} | {seconds:.0f} |", flush=True)
    return caught_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only faults whose name contains one of these")
    parser.add_argument("--check-texts", action="store_true", help="only check that every text occurs exactly once")
    options = parser.parse_args()
    chosen = [x for x in FAULTS if not options.names or any(name in x.name for name in options.names)]
    missing = [x for x in chosen if (ROOT / x.file).read_text().count(x.right) != 1]
    for fault in missing:
        print(f"{fault.name}: not exactly once in {fault.file}: {fault.right!r}", file=sys.stderr)
    if missing or options.check_texts:
        return int(bool(missing))
    return 0 if report(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
