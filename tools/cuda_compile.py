"""Compile the CUDA C++ kernels for one architecture, and report their resources. Needs nvcc and Triton, but no GPU.

    python tools/cuda_compile.py [--json] [--chip CHIP] [--objects FOLDER]

Compiles csrc/cuda with the flags of setup.py, and prints for each kernel registers, spilled bytes and static shared
memory, 1024 bytes of which belong to the system on sm_90. For kernels on tensor cores it adds two numbers of the loop
that does the products: its issue bound (see sass.py), and loads of matrices from shared memory (LDSM) per HMMA.

How often that loop is passed depends on the width of rows, which is known only when a kernel runs. So the issue bound
is that of the loop alone, not of all that a tile costs, and cannot be compared with those of the Triton kernels.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import build_script
import sass

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel and its resources."""

    name: str
    registers: int
    spilled: int
    shared: int
    issue_bound: int | None  # percent, of the loop that does the products; None without tensor cores
    loads: float | None  # LDSM per HMMA in this loop


def compile_sources(folder: Path, chip: int) -> list[Path]:
    """Compile csrc/cuda into object files in a folder, whose paths are returned. Files that are up to date are kept."""
    setup = build_script.load()
    with mock.patch.dict(os.environ, {"SHOWFACE_CUDA_ARCHS": str(chip)}):
        rules = setup.ninja_file(folder / "unused", folder, setup.find_nvcc())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(rules)
    objects = [folder / f"{source.relative_to(ROOT)}.o" for source in sorted(ROOT.glob("csrc/cuda/*.cu"))]
    command = [sys.executable, "-m", "ninja", "-f", folder / "build.ninja", *objects]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return objects


def readable(names: list[str]) -> list[str]:
    """The names of kernels as in the sources, with template arguments but without types of arguments."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return names
    text = subprocess.run([tool], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    short = [re.sub(r"^void |showface::|c10::|\(anonymous namespace\)::", "", line) for line in text.splitlines()]
    # The list of arguments begins at the first bracket outside of the template arguments.
    return [re.sub(r"(>|^\w+)\(.*$", r"\1", line) for line in short]


def report(objects: list[Path], chip: int) -> list[Compiled]:
    """The resources of all kernels in some object files."""
    compiled = []
    for path in objects:
        kernels = sass.read(path, sass.cuobjdump())
        for name, code in zip(readable(list(kernels)), kernels.values(), strict=True):
            loop = sass.product_loop(code.instructions, chip)
            bound = loads = None
            if loop is not None:
                bound = round(100 * loop.tensor_cycles / loop.issue_cycles)
                loads = round(loop.issued["LDSM"] / loop.issued["HMMA"], 2)
            compiled.append(Compiled(name, code.registers, code.spilled, code.shared, bound, loads))
    return sorted(compiled, key=lambda one: one.name)


def table(compiled: list[Compiled], chip: int) -> str:
    """The table in Markdown."""
    lines = [
        f"| kernel (sm_{chip}) | registers | spilled | shared | issue bound | LDSM per HMMA |",
        "|---|---|---|---|---|---|",
    ]
    for x in compiled:
        products = "- | -" if x.issue_bound is None else f"{x.issue_bound}% | {x.loads}"
        lines.append(f"| {x.name} | {x.registers} | {x.spilled} | {x.shared} | {products} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--chip", type=int, choices=sass.RATES, default=90, help="architecture")
    parser.add_argument("--objects", type=Path, help="keep object files here, and use those that are up to date")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        objects = compile_sources((options.objects or Path(folder)).resolve(), options.chip)
        compiled = report(objects, options.chip)
    print(json.dumps([asdict(x) for x in compiled]) if options.json else table(compiled, options.chip))


if __name__ == "__main__":
    main()
