"""Compile every Triton kernel for GPUs that need not be here, in all sizes it is launched with; say what it takes.

    python tools/triton_compile.py [NAME ...] [--json] [--chips CHIP ...] [--widths WIDTH ...]

Prints a table in Markdown, or JSON: registers, spilled bytes, shared memory and whether tensor cores are used; for all
kernels, or those whose name and size contain every NAME.
"""

import argparse
import ast
import inspect
import json
import os
import re
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from showface.kernels import attention, memory, rows, tiles, tokens

# Shared memory that a block may have, in bytes. sm_86, sm_89 and sm_120 have less of it than sm_80, and take its code.
CHIPS = {80: 101_376, 90: 232_448, 100: 232_448}
DTYPES = ("fp32", "fp16", "bf16")
SPILL_LIMIT = 128  # bytes of a thread, 32 registers' worth
WIDTHS = (20, 32, 64, 100, 128, 256)  # of which 20 and 100 are odd ones, see tiles.py


@dataclass(frozen=True)
class Kernel:
    """One kernel in one size: what Triton needs to compile it."""

    name: str
    size: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    aligned: bool = False
    tensor_cores: bool = False


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of it."""

    name: str
    size: str
    chip: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: bool
    wants_tensor_cores: bool


MODULES = (attention, memory, rows, tokens)
FUNCTIONS = {
    "count_tokens": tokens.count_tokens_kernel,
    "place_tokens": tokens.place_tokens_kernel,
    "attention_fwd": attention.attention_fwd_kernel,
    "attention_merge": attention.attention_merge_kernel,
    "attention_bwd_query": attention.attention_bwd_query_kernel,
    "attention_bwd_key": attention.attention_bwd_key_kernel,
    "memory_blend": memory.memory_blend_kernel,
}
# Of the table of tiles, which kernel each is for.
ATTENTION = {
    "forward": "attention_fwd",
    "backward_query": "attention_bwd_query",
    "backward_key": "attention_bwd_key",
    "accumulate": "attention_bwd_key",
}
TRITON_DTYPES = {"fp32": triton.language.float32, "fp16": triton.language.float16, "bf16": triton.language.bfloat16}


def kernels(widths: Sequence[int] = WIDTHS) -> list[Kernel]:
    """Each kernel in every size that the widths lead to, once."""
    every = [*sorting(), *merging(), *blending(), *attending(widths)]
    every += [of_ones(kernel) for kernel in every if "fp32" in kernel.size and " odd" in kernel.size]
    every += [of_ones(kernel) for kernel in every if kernel.name in ("count_tokens", "place_tokens")]
    return list({(kernel.name, kernel.size): kernel for kernel in every}.values())


def of_ones(kernel: Kernel) -> Kernel:
    """The kernel that Triton makes for numbers that are 1: it takes them for constants."""
    ones = [name for name, type_ in kernel.types.items() if type_ == "i32"]
    types = {name: type_ for name, type_ in kernel.types.items() if name not in ones}
    constants = kernel.constants | dict.fromkeys(ones, 1)
    return replace(kernel, size=f"{kernel.size}, all 1", types=types, constants=constants)


def sorting() -> Iterator[Kernel]:
    for groups, dtype in ((1, "i1"), (19, "i64")):
        sizes = tokens.group_blocks(groups) | {"HOLE": dtype == "i1"}
        sizes["SPAN"] = 8 * sizes["BLOCK_T"]
        types = {"group_ptr": f"*{dtype}", "count_ptr": "*i32"} | dict.fromkeys(("tokens", "groups"), "i32")
        size = f"{groups} groups {sizes['BLOCK_T']}"
        yield Kernel("count_tokens", size, types, sizes)
        types = types | {"order_ptr": "*i32", "offset_ptr": "*i32"}
        yield Kernel("place_tokens", size, types, sizes)
        alone = {name: type_ for name, type_ in types.items() if name != "count_ptr"}
        yield Kernel("place_tokens", f"{size} at once", alone, sizes | {"count_ptr": None})


def merging() -> Iterator[Kernel]:
    for dtype in TRITON_DTYPES:
        types = {"share_ptr": "*fp32", "share_log_sum_ptr": "*fp32", "out_ptr": f"*{dtype}", "log_sum_ptr": "*fp32"}
        types |= dict.fromkeys(("rows", "values", "splits"), "i32")
        yield Kernel("attention_merge", f"{dtype} 16x128", types, {"BLOCK_M": 16, "BLOCK_P": 128})


def blending() -> Iterator[Kernel]:
    for dtype in ("fp32", "fp16", "fp64"):
        sums = "fp64" if dtype == "fp64" else "fp32"
        types = dict.fromkeys(("memory_ptr", "out_ptr"), f"*{dtype}") | dict.fromkeys(
            ("mass_ptr", "total_ptr"), f"*{sums}"
        )
        types |= {"log_keep": "fp32", "rows": "i32", "channels": "i32"}
        constants = {"ACCUMULATE": getattr(triton.language, f"float{sums[2:]}"), "BLOCK_M": 16, "BLOCK_C": 128}
        if dtype == "fp64":
            types |= {"log_keep_ptr": "*fp64"}
        else:
            constants |= {"log_keep_ptr": None}
        yield Kernel("memory_blend", f"{dtype} 16x128", types, constants)


def attending(widths: Sequence[int]) -> Iterator[Kernel]:
    """The attention kernels with the tiles of every class of widths."""
    for kernel in tiles.KERNELS:
        for dtype, kind in (("fp32", "fp32"), ("fp32", "tf32"), ("fp16", "half"), ("bf16", "half")):
            if dtype != "bf16":
                yield attention_kernel("forward", dtype, kind, tiles.look_up("forward", kind, 64), 64, statistics=True)
            # Either half precision makes the same code but for the instructions' names.
            for width in widths if dtype != "bf16" else (64,):
                tile = tiles.look_up(kernel, kind, tiles.width_class(width, width))
                yield attention_kernel(kernel, dtype, kind, tile, width, listed=kernel != "accumulate")
                if width in (64, 128):
                    yield attention_kernel(kernel, dtype, kind, tile, width, listed=False, small_groups=width == 128)


def attention_kernel(
    kernel: str,
    dtype: str,
    kind: str,
    tile: tiles.Tile,
    width: int,
    *,
    listed: bool = False,
    small_groups: bool = False,
    statistics: bool = False,
) -> Kernel:
    """One of the attention kernels. Listed keys are those of masked_correlation, others also those of the memory.

    Where groups are small, the forward finds its tokens itself. With `statistics` it has no values to mix.
    """
    sizes = tiles.constants(tile, kernel, width, width, small_groups)
    warps, stages = sizes.pop("num_warps"), sizes.pop("num_stages")
    constants = {
        "LISTED": listed,
        "ACCUMULATE": triton.language.float32,
        "OPERAND": TRITON_DTYPES[dtype],
        "PRECISION": "tf32" if kind == "tf32" else "tf32x3",
        **sizes,
    }
    data, sums = f"*{dtype}", "*fp32"
    types = dict.fromkeys(("query_ptr", "key_ptr"), data) | dict.fromkeys(("order_ptr", "offset_ptr"), "*i32")
    types |= {"log_sum_ptr": sums, "temperature_ptr": sums, "scale": "fp32"}
    types |= dict.fromkeys(("tokens", "groups", "key_rows", "channels", "values"), "i32")
    if kernel == "forward":
        types |= {"value_ptr": data, "out_ptr": data} | dict.fromkeys(("splits", "parts"), "i32")
        constants |= {"HIGH_TEMPERATURE": 2.0 if dtype == "fp16" else 40.0}
    elif kernel == "backward_query":
        types |= dict.fromkeys(("grad_ptr", "value_ptr", "out_ptr", "grad_query_ptr"), data)
        types |= dict.fromkeys(("along_ptr", "grad_temperature_ptr"), sums)
    else:
        types |= dict.fromkeys(("splits", "parts"), "i32") | {"grad_ptr": data}
        if kernel == "accumulate":
            types |= {"grad_value_ptr": sums, "mass_ptr": sums}
            constants |= dict.fromkeys(("value_ptr", "along_ptr", "grad_key_ptr"))
        else:
            types |= dict.fromkeys(("value_ptr", "grad_key_ptr", "grad_value_ptr"), data) | {"along_ptr": sums}
            constants |= {"mass_ptr": None}
        constants["VALUE_OPERAND"] = constants["ACCUMULATE" if kernel == "accumulate" else "OPERAND"]
    if kernel in ("forward", "backward_query"):
        blocks = tokens.group_blocks(1 if listed else 19)
        constants |= blocks if kernel == "forward" else {"BLOCK_G": blocks["BLOCK_G"]}
    if kernel == "forward" and small_groups:
        types |= {"order_ptr": "*i64"}
        constants |= {"offset_ptr": None}
        del types["offset_ptr"]
    # The slots of the memory are keys and values at once.
    for name in (
        ("value_ptr", "out_ptr") if statistics else ("grad_value_ptr",) * (kernel == "backward_key" and not listed)
    ):
        constants[name] = None
        del types[name]
    aligned = width % 16 == 0
    pairs = f"{sizes['BLOCK_M']}x{sizes['BLOCK_N']}"
    columns = f"{sizes['BLOCK_C']}" if sizes["WHOLE"] else f"{sizes['BLOCK_C']}, {sizes['BLOCK_P']}"
    size = f"{dtype if kind != 'tf32' else kind} {pairs} x {columns}{'' if aligned else ' odd'}, {warps} warps"
    size += ", listed keys" if listed else ", blocks of keys"
    size += ", no values" if statistics else ""
    name = ATTENTION[kernel] + (" of memory_accumulate" if kernel == "accumulate" else "")
    return Kernel(name, size, types, constants, warps, stages, aligned, tensor_cores=True)


def compile_for(kernel: Kernel, chip: int) -> Compiled:
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
    registers, spilled = resources(built.asm["cubin"])
    instructions = r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)"
    found = re.search(instructions, built.asm["ptx"]) is not None
    return Compiled(
        kernel.name, kernel.size, chip, registers, spilled, built.metadata.shared, found, kernel.tensor_cores
    )


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of it that did not fit into them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2]) + int(found[3])


def loads_without_fill() -> list[str]:
    """Loads with a mask that leave open what the masked places hold."""
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
    chosen = [x for x in kernels(widths) if all(name in f"{x.name} {x.size}" for name in names)]
    jobs = [(kernel, chip) for kernel in chosen for chip in chips]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_for, *zip(*jobs, strict=True)))


def table(compiled: list[Compiled]) -> str:
    """A row for each kernel and size, and for each chip registers / spilled bytes / shared bytes."""
    chips = sorted({one.chip for one in compiled})
    lines = [
        f"Triton {triton.__version__}: registers of a thread / bytes spilled / shared memory of a block in bytes.\n",
        "| kernel | size | tensor cores |" + "".join(f" sm_{chip} |" for chip in chips),
        "|---|---|---|" + "---|" * len(chips),
    ]
    rows: dict[tuple[str, str], dict[int, Compiled]] = {}
    for one in compiled:
        rows.setdefault((one.name, one.size), {})[one.chip] = one
    for (name, size), by_chip in rows.items():
        cells = [f"{x.registers} / {x.spilled} / {x.shared}" for x in (by_chip[chip] for chip in chips)]
        cores = "yes" if by_chip[chips[0]].tensor_cores else "no"
        lines.append(f"| {name} | {size} | {cores} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only kernels whose name and size contain every NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--chips", nargs="+", type=int, choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    options = parser.parse_args()
    done = compile_all(options.names, options.chips, options.widths)
    if options.json:
        report = {"compiled": [asdict(x) for x in done], "shared_memory": CHIPS, "spill_limit": SPILL_LIMIT}
        print(json.dumps(report | {"kernels": list(FUNCTIONS), "loads_without_fill": loads_without_fill()}))
    else:
        print(table(done))
