"""Compile the Triton kernels in all sizes for several GPU architectures, and report their resources. Needs no GPU.

    python tools/triton_compile.py [NAME ...] [--json] [--chips CHIP ...] [--widths WIDTH ...]
    python tools/triton_compile.py --update-docs
    python tools/triton_compile.py --update-bounds

Reports registers, spilled bytes, shared memory, whether tensor cores are used and the issue bound (see sass.py), as a
table in Markdown or as JSON, for the kernels whose name and size contain every NAME. `--update-docs` writes the table
of all kernels into docs/triton-kernels.md, `--update-bounds` their issue bounds into tools/issue_bounds.json.
"""

import argparse
import ast
import inspect
import json
import os
import re
import tempfile
import textwrap
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import issue_bounds
import sass
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_kernels import FUNCTIONS, MODULES, WIDTHS, Kernel, kernels

# Bytes of shared memory per block. sm_86, sm_89 and sm_120 run the code for sm_80 but have less shared memory, so
# their smaller limit is used for sm_80.
CHIPS = {80: 101_376, 90: 232_448, 100: 232_448}
PAGE = Path(__file__).parents[1] / "docs" / "triton-kernels.md"
MARKERS = ("<!-- table of triton_compile.py: begin -->", "<!-- table of triton_compile.py: end -->")
SPILL_LIMIT = 128  # bytes per thread, 32 registers


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel and its resources."""

    name: str
    size: str
    case: str
    chip: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: bool
    wants_tensor_cores: bool
    issue_bound: int | None  # percent; None if it is not counted
    repeated: float | None  # how often the main loop does each product it is for; 1 is best


def compile_for(kernel: Kernel, chip: int) -> Compiled:
    """Compile a kernel for one architecture, such as 90 for sm_90."""
    function = FUNCTIONS[kernel.name.split()[0]]
    signature = kernel.types | dict.fromkeys(kernel.constants, "constexpr")
    attributes = {}
    if kernel.aligned:
        names = function.arg_names
        whole_rows = [name for name in kernel.types if name.endswith("_ptr") or name in ("channels", "values")]
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in whole_rows}
    source = ASTSource(function, signature=signature, constexprs=kernel.constants, attrs=attributes)
    built = triton.compile(
        source, target=GPUTarget("cuda", chip, 32), options={"num_warps": kernel.warps, "num_stages": kernel.stages}
    )
    instructions = r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)"
    found = re.search(instructions, built.asm["ptx"]) is not None
    counted = chip in sass.RATES and bool(kernel.products)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        (code,) = sass.read(Path(file.name), sass.cuobjdump(), code=counted).values()
    return Compiled(
        *(kernel.name, kernel.size, kernel.case, chip, code.registers, code.spilled, built.metadata.shared),
        *(found, kernel.tensor_cores, *(issue_bound(kernel, chip, code) if counted else (None, None))),
    )


def issue_bound(kernel: Kernel, chip: int, code: sass.Code) -> tuple[int, float]:
    """The issue bound in percent, and how often the main loop does each product. 0 if it does none on tensor cores.

    Only products that the loop is for count. Triton lets warps repeat products where a tile has too few rows for them.
    """
    done = sass.main_loop(code.instructions, chip, kernel.pieces)
    if done is None:
        return 0, 0
    needed = sum(count / sass.RATES[chip][kind] for kind, count in kernel.products.items()) / kernel.warps
    return round(100 * needed / done.issue_cycles), round(done.tensor_cycles / needed, 2)


def loads_without_fill() -> list[str]:
    """All masked `tl.load` calls without `other`, whose masked elements are undefined."""
    found = []
    functions = {name: x for module in MODULES for name, x in vars(module).items() if isinstance(x, triton.JITFunction)}
    for name, function in functions.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
                given = {keyword.arg for keyword in node.keywords}
                if "mask" in given and "other" not in given:
                    found.append(f"{name}: {ast.unparse(node)}")
    return found


def compile_all(names: Sequence[str], chips: Sequence[int], widths: Sequence[int]) -> list[Compiled]:
    """Compile the kernels whose name and size contain every name, for these architectures and widths."""
    jobs = [(kernel, chip) for chip in chips for kernel in kernels(chip, widths)]
    jobs = [job for job in jobs if all(name in f"{job[0].name} {job[0].size}" for name in names)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_for, *zip(*jobs, strict=True)))


def table(compiled: list[Compiled]) -> str:
    """The table in Markdown: a row per kernel and size, a column per architecture."""
    chips = sorted({one.chip for one in compiled})
    lines = [
        f"Triton {triton.__version__}: registers per thread / spilled bytes per thread / "
        "bytes of shared memory per block / issue bound.",
        "",
        "| kernel | size | tensor cores |" + "".join(f" sm_{chip} |" for chip in chips),
        "|---|---|---|" + "---|" * len(chips),
    ]
    rows: dict[tuple[str, str], dict[int, Compiled]] = {}
    for one in compiled:
        rows.setdefault((one.name, one.size), {})[one.chip] = one
    for (name, size), by_chip in rows.items():
        cells = [cell(by_chip[chip]) if chip in by_chip else "" for chip in chips]
        cores = "yes" if any(one.tensor_cores for one in by_chip.values()) else "no"
        lines.append(f"| {name} | {size} | {cores} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(one: Compiled) -> str:
    bound = "" if one.issue_bound is None else f" / {one.issue_bound}%"
    return f"{one.registers} / {one.spilled} / {one.shared}{bound}"


def bounds(compiled: list[Compiled]) -> issue_bounds.Bounds:
    """The issue bounds, by case and chip."""
    found: issue_bounds.Bounds = {}
    for one in compiled:
        if one.issue_bound is not None:
            found.setdefault(one.case, {})[str(one.chip)] = one.issue_bound
    return found


def version() -> str:
    """The version of Triton under which issue bounds are recorded, such as 3.9."""
    return ".".join(triton.__version__.split(".")[:2])


def update_docs(text: str) -> None:
    """Replace the text between the two markers of docs/triton-kernels.md by `text`."""
    page = PAGE.read_text()
    if page.count(MARKERS[0]) != 1 or page.count(MARKERS[1]) != 1:
        raise SystemExit(f"{PAGE} must contain the markers {MARKERS[0]} and {MARKERS[1]} once each")
    before, rest = page.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    PAGE.write_text(f"{before}{MARKERS[0]}\n\n{text}\n{MARKERS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="compile only kernels with every NAME in name or size")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--update-docs", action="store_true", help="write the table into docs/triton-kernels.md")
    output.add_argument("--update-bounds", action="store_true", help="record the issue bounds of this Triton")
    parser.add_argument("--chips", nargs="+", type=int, choices=CHIPS, default=list(CHIPS), help="architectures")
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, help="channels of a row")
    options = parser.parse_args()
    everything = not options.names and len(options.chips) == len(CHIPS) and options.widths == WIDTHS
    if (options.update_docs or options.update_bounds) and not everything:
        parser.error("--update-docs and --update-bounds take all kernels, so no NAME, --chips or --widths")
    chips = list(sass.RATES) if options.update_bounds else options.chips
    done = compile_all(options.names, chips, options.widths)
    if options.json:
        report = {"compiled": [asdict(x) for x in done], "shared_memory": CHIPS, "spill_limit": SPILL_LIMIT}
        report |= {"kernels": list(FUNCTIONS), "loads_without_fill": loads_without_fill()}
        report |= {"version": version(), "bounds": bounds(done)}
        print(json.dumps(report))
    elif options.update_bounds:
        issue_bounds.save(version(), bounds(done))
    elif options.update_docs:
        update_docs(table(done))
    else:
        print(table(done))


if __name__ == "__main__":
    main()
