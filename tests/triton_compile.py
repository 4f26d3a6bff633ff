"""Compile every Triton kernel for GPUs that need not be here, in all sizes it is launched with; say what it takes.

    python tests/triton_compile.py [--json] [NAME ...]

Prints a table in Markdown, or JSON: registers, spilled bytes, shared memory and whether tensor cores are used; for all
kernels, or those whose name and size contain every NAME.
"""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from showface.kernels import correlation, memory, tokens

# Shared memory that a block may have, in bytes.
CHIPS = {80: 166_912, 90: 232_448, 100: 232_448}
DTYPES = ("fp32", "fp16", "bf16")
WIDTHS = (1, 3, 8, 20, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Kernel:
    """One kernel in one size: what Triton needs to compile it."""

    name: str
    size: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
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


FUNCTIONS = {
    "memory_read_fwd": memory.memory_read_fwd_kernel,
    "list_tokens": tokens.list_tokens_kernel,
    "correlation_fwd": correlation.correlation_fwd_kernel,
    "correlation_merge": correlation.correlation_merge_kernel,
    "correlation_bwd_query": correlation.correlation_bwd_query_kernel,
    "correlation_bwd_key": correlation.correlation_bwd_key_kernel,
}


def kernels() -> list[Kernel]:
    """Each kernel in every size that the widths lead to, once."""
    every = [*memory_read(), *masked_correlation()]
    return list({(kernel.name, kernel.size): kernel for kernel in every}.values())


def memory_read() -> Iterator[Kernel]:
    for dtype in (*DTYPES, "fp64"):
        for width in WIDTHS:
            for slots in (64, 1024):
                blocks = memory.read_blocks(slots, width)
                # Temperatures are learnt in float32; without one there is less to load.
                types = {"latent_ptr": f"*{dtype}", "memory_ptr": f"*{dtype}", "region_ptr": "*i64"}
                types |= {"temperature_ptr": "*fp32", "out_ptr": f"*{dtype}", "scale": "fp32"}
                types |= {"regions": "i32", "slots": "i32", "channels": "i32"}
                accumulate = triton.language.float64 if dtype == "fp64" else triton.language.float32
                constants = {"ACCUMULATE": accumulate, **blocks}
                yield Kernel("memory_read_fwd", f"{dtype} {blocks['BLOCK_S']}x{blocks['BLOCK_C']}", types, constants)


TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TRITON_DTYPES = {"fp32": triton.language.float32, "fp16": triton.language.float16, "bf16": triton.language.bfloat16}


def masked_correlation() -> Iterator[Kernel]:
    integers = dict.fromkeys(("tokens", "channels", "values"), "i32")
    yield Kernel(
        "list_tokens",
        "1024",
        {"hole_ptr": "*i1", "order_ptr": "*i32", "count_ptr": "*i32", "tokens": "i32"},
        {"BLOCK": 1024},
    )
    for dtype in DTYPES:
        for width in [width for width in WIDTHS if width <= correlation.MAX_WIDTH[TORCH_DTYPES[dtype]]]:
            data = {f"{name}_ptr": f"*{dtype}" for name in ("query", "key", "value")}
            lists = {"order_ptr": "*i32", "count_ptr": "*i32"}
            constants = {
                "ALL_KEYS": False,
                "ACCUMULATE": triton.language.float32,
                "OPERAND": TRITON_DTYPES[dtype],
                "PRECISION": "tf32x3",
            }
            grad, log_sum = {"grad_ptr": f"*{dtype}"}, {"log_sum_ptr": "*fp32"}
            rest = {"temperature_ptr": "*fp32"}
            sizes = correlation.blocks(width, width, TORCH_DTYPES[dtype])
            warps = sizes.pop("num_warps")
            name = f"{dtype} {'x'.join(map(str, sizes.values()))}"
            cores = True
            types = data | lists | rest | {"out_ptr": f"*{dtype}"} | log_sum | {"scale": "fp32"} | integers
            high = {"HIGH_TEMPERATURE": 2.0 if dtype == "fp16" else 40.0}
            yield Kernel("correlation_fwd", name, types | {"splits": "i32"}, high | constants | sizes, warps, cores)
            types = {"share_ptr": "*fp32", "share_log_sum_ptr": "*fp32", "out_ptr": f"*{dtype}"} | log_sum
            types |= dict.fromkeys(("rows", "values", "splits"), "i32")
            merged = {"BLOCK_M": 16, "BLOCK_V": sizes["BLOCK_V"]}
            yield Kernel("correlation_merge", f"{dtype} 16x{sizes['BLOCK_V']}", types, merged)
            sizes = correlation.blocks(width, width, TORCH_DTYPES[dtype], backward=True)
            warps = sizes.pop("num_warps")
            name = f"{dtype} {'x'.join(map(str, sizes.values()))}"
            types = grad | data | lists | {"out_ptr": f"*{dtype}"} | log_sum | rest | {"grad_query_ptr": f"*{dtype}"}
            types |= {"along_ptr": "*fp32", "grad_temperature_ptr": "*fp32", "scale": "fp32"} | integers
            yield Kernel("correlation_bwd_query", name, types, constants | sizes, warps, cores)
            types = grad | data | lists | log_sum | {"along_ptr": "*fp32"} | rest
            types |= {"grad_key_ptr": f"*{dtype}", "grad_value_ptr": f"*{dtype}", "scale": "fp32"} | integers
            yield Kernel("correlation_bwd_key", name, types, constants | sizes, warps, cores)


def compile_for(kernel: Kernel, chip: int) -> Compiled:
    signature = kernel.types | dict.fromkeys(kernel.constants, "constexpr")
    source = ASTSource(FUNCTIONS[kernel.name], signature=signature, constexprs=kernel.constants)
    built = triton.compile(source, target=GPUTarget("cuda", chip, 32), options={"num_warps": kernel.warps})
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
    for name, function in FUNCTIONS.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
                given = {keyword.arg for keyword in node.keywords}
                if "mask" in given and "other" not in given:
                    found.append(f"{name}: {ast.unparse(node)}")
    return found


def compile_all(names: Sequence[str]) -> list[Compiled]:
    chosen = [x for x in kernels() if all(name in f"{x.name} {x.size}" for name in names)]
    jobs = [(kernel, chip) for kernel in chosen for chip in CHIPS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_for, *zip(*jobs, strict=True)))


def table(compiled: list[Compiled]) -> str:
    """A row for each kernel and size, and for each chip registers / spilled bytes / shared bytes."""
    chips = list(CHIPS)
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
    names = [name for name in sys.argv[1:] if name != "--json"]
    done = compile_all(names)
    if "--json" in sys.argv[1:]:
        report = {"compiled": [asdict(x) for x in done], "shared_memory": CHIPS}
        print(json.dumps(report | {"loads_without_fill": loads_without_fill()}))
    else:
        print(table(done))
