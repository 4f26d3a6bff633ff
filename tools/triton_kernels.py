"""The Triton kernels in all sizes, with what Triton needs to compile each: types, constants, tiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import triton

from showface.kernels import attention, combine, memory, rows, tiles, tokens, work

WIDTHS = (20, 32, 64, 100, 128, 256)  # 20 and 100 belong to the width class ODD of tiles.py


@dataclass(frozen=True)
class Kernel:
    """One kernel in one size, with all that Triton needs to compile it."""

    name: str
    size: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    aligned: bool = False
    tensor_cores: bool = False
    case: str = ""  # what it computes, whatever its tile: under this name its issue bounds are recorded
    # Multiply-adds that a pass of the block through the main loop is for, by kind of operands (see sass.RATES).
    products: dict[str, float] = field(default_factory=dict)
    pieces: int = 1  # passes through a loop over pieces of a row, inside the main loop


MODULES = (attention, combine, memory, rows, tokens, work)
FUNCTIONS = {
    "count_tokens": tokens.count_tokens_kernel,
    "place_tokens": tokens.place_tokens_kernel,
    "list_work": work.list_work_kernel,
    "inverse_norms": rows.inverse_norms_kernel,
    "attention_fwd": attention.attention_fwd_kernel,
    "attention_bwd_query": attention.attention_bwd_query_kernel,
    "attention_bwd_key": attention.attention_bwd_key_kernel,
    "attention_combine": combine.attention_combine_kernel,
    "sum_pieces": combine.sum_pieces_kernel,
    "memory_blend": memory.memory_blend_kernel,
}
# For each entry of the table of tiles, the kernel that uses it.
ATTENTION = {
    "forward": "attention_fwd",
    "backward_query": "attention_bwd_query",
    "backward_key": "attention_bwd_key",
    "accumulate": "attention_bwd_key",
}
TRITON_DTYPES = {"fp32": triton.language.float32, "fp16": triton.language.float16, "bf16": triton.language.bfloat16}


def kernels(chip: int, widths: Sequence[int] = WIDTHS) -> list[Kernel]:
    """All kernels in all sizes for an architecture and these widths, without duplicates."""
    every = [*sorting(), *listing(), *norming(), *combining(), *blending(), *attending(widths, chip)]
    every += [of_ones(kernel) for kernel in every if "fp32" in kernel.size and " odd" in kernel.size]
    every += [of_ones(kernel) for kernel in every if kernel.name in ("count_tokens", "place_tokens")]
    return list({(kernel.name, kernel.size): kernel for kernel in every}.values())


def of_ones(kernel: Kernel) -> Kernel:
    """The variant for integer arguments that are all 1. Triton compiles such arguments as constants."""
    ones = [name for name, type_ in kernel.types.items() if type_ == "i32"]
    types = {name: type_ for name, type_ in kernel.types.items() if name not in ones}
    constants = kernel.constants | dict.fromkeys(ones, 1)
    # Their machine code is much like that for other arguments, so their issue bounds are not counted.
    return replace(kernel, size=f"{kernel.size}, all 1", types=types, constants=constants, case="", products={})


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


def norming() -> Iterator[Kernel]:
    for dtype in TRITON_DTYPES:
        types = dict.fromkeys(("query_ptr", "key_ptr"), f"*{dtype}")
        types |= dict.fromkeys(("query_inverse_ptr", "key_inverse_ptr"), "*fp32")
        types |= dict.fromkeys(("queries", "keys", "width"), "i32")
        constants = {"ACCUMULATE": triton.language.float32, **tiles.NORMS}
        yield Kernel("inverse_norms", f"{dtype} {tiles.NORMS['BLOCK_M']}x{tiles.NORMS['BLOCK_C']}", types, constants)


def listing() -> Iterator[Kernel]:
    types = {"offset_ptr": "*i32", "item_ptr": "*i32"}
    types |= dict.fromkeys(("sections", "tokens", "groups", "key_rows", "slots", "most", "items"), "i32")
    sizes = {"BLOCK_ROWS": 64, "BLOCK_COLUMNS": 64, **work.LIST}
    for over_queries, listed_keys, cut in ((False, True, True), (False, False, False), (True, False, True)):
        constants = {"OVER_QUERIES": over_queries, "LISTED_KEYS": listed_keys, "CUT": cut, **sizes}
        size = f"{'keys' if over_queries else 'queries'}, {'listed keys' if listed_keys else 'blocks of keys'}"
        yield Kernel("list_work", size, types, constants)


def combining() -> Iterator[Kernel]:
    pointers = {"item_ptr": "*i32", "order_ptr": "*i32", "partial_ptr": "*fp32"}
    for dtype in TRITON_DTYPES:
        types = pointers | {"out_ptr": f"*{dtype}", "tokens": "i32"}
        own = {"partial_lse_ptr": "*fp32", "lse_ptr": "*fp32", "values": "i32"}
        sizes = {"BLOCK_R": 16, "BLOCK_P": 128}
        yield Kernel("attention_combine", f"{dtype} 16x128", types | own, sizes | {"BLOCK_M": 64})
        own = dict.fromkeys(("groups", "key_rows", "width", "more_width"), "i32")
        own |= {"more_partial_ptr": "*fp32", "more_out_ptr": f"*{dtype}"}
        yield Kernel("sum_pieces", f"{dtype} 16x128", types | own, sizes | {"LISTED": True, "BLOCK_ROWS": 64})


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


def attending(widths: Sequence[int], chip: int) -> Iterator[Kernel]:
    """The attention kernels with an architecture's tiles of every width class."""
    for kernel in tiles.KERNELS:
        for dtype, kind in (("fp32", "fp32"), ("fp32", "tf32"), ("fp16", "half"), ("bf16", "half")):
            if dtype != "bf16":
                tile = tiles.look_up("forward", kind, 64, chip)
                yield attention_kernel("forward", dtype, kind, tile, 64, statistics=True)
            # float16 and bfloat16 compile to the same code except for the names of instructions.
            for width in widths if dtype != "bf16" else (64,):
                tile = tiles.look_up(kernel, kind, tiles.width_class(width, width), chip)
                yield attention_kernel(kernel, dtype, kind, tile, width, listed_keys=kernel != "accumulate")
                if width in (64, 128):
                    small = width == 128
                    if small:  # too few queries for the larger tiles of a chip
                        tile = tiles.look_up(kernel, kind, width, chip, group=0)
                    yield attention_kernel(kernel, dtype, kind, tile, width, listed_keys=False, small_groups=small)


def attention_kernel(
    kernel: str,
    dtype: str,
    kind: str,
    tile: tiles.Tile,
    width: int,
    *,
    listed_keys: bool = False,
    small_groups: bool = False,
    statistics: bool = False,
) -> Kernel:
    """One attention kernel in one size.

    Args:
        kernel, dtype, kind: see `tiles.KERNELS`, TRITON_DTYPES and `tiles.KINDS`.
        tile: the tile sizes.
        width: width of the rows of keys and values.
        listed_keys: keys are listed tokens, as in masked_correlation; else each group has a matrix of keys.
        small_groups: the tile has few queries.
        statistics: the forward computes only lse and has no values.
    """
    sizes = tiles.constants(tile, kernel, width, width, small_groups)
    warps, stages = sizes.pop("num_warps"), sizes.pop("num_stages")
    constants = {
        "LISTED_KEYS": listed_keys,
        "ACCUMULATE": triton.language.float32,
        "OPERAND": TRITON_DTYPES[dtype],
        "PRECISION": "tf32" if kind == "tf32" else "tf32x3",
        **sizes,
    }
    data, sums = f"*{dtype}", "*fp32"
    types = dict.fromkeys(("query_ptr", "key_ptr"), data)
    types |= dict.fromkeys(("order_ptr", "item_ptr"), "*i32")
    types |= dict.fromkeys(("query_inverse_ptr", "key_inverse_ptr", "lse_ptr", "temperature_ptr"), sums)
    types |= {"scale": "fp32"}
    types |= dict.fromkeys(("tokens", "groups", "key_rows", "channels", "values"), "i32")
    if kernel == "forward":
        types |= {"value_ptr": data, "out_ptr": data} | dict.fromkeys(("partial_ptr", "partial_lse_ptr"), sums)
        constants |= {"HIGH_TEMPERATURE": 2.0 if dtype == "fp16" else 40.0}
    elif kernel == "backward_query":
        types |= dict.fromkeys(("grad_ptr", "value_ptr", "out_ptr", "grad_query_ptr"), data)
        types |= dict.fromkeys(("partial_ptr", "delta_ptr", "grad_temperature_ptr"), sums)
    else:
        types |= {"grad_ptr": data, "partial_value_ptr": sums}
        if kernel == "accumulate":
            types |= dict.fromkeys(("grad_value_ptr", "mass_ptr", "partial_mass_ptr"), sums)
            constants |= dict.fromkeys(("value_ptr", "delta_ptr", "grad_key_ptr", "partial_key_ptr"))
        else:
            types |= dict.fromkeys(("value_ptr", "grad_key_ptr", "grad_value_ptr"), data)
            types |= dict.fromkeys(("delta_ptr", "partial_key_ptr"), sums)
            constants |= dict.fromkeys(("mass_ptr", "partial_mass_ptr"))
        constants["VALUE_OPERAND"] = constants["ACCUMULATE" if kernel == "accumulate" else "OPERAND"]
    constants["CUT"] = listed_keys or kernel in ("backward_key", "accumulate")
    if kernel == "forward" and not listed_keys:
        constants |= dict.fromkeys(("partial_ptr", "partial_lse_ptr"))
        del types["partial_ptr"], types["partial_lse_ptr"]
    # The slots of the memory are both keys and values.
    for name in (
        ("value_ptr", "out_ptr")
        if statistics
        else ("grad_value_ptr", "partial_value_ptr") * (kernel == "backward_key" and not listed_keys)
    ):
        constants[name] = None
        del types[name]
    aligned = width % 16 == 0
    pairs = f"{sizes['BLOCK_M']}x{sizes['BLOCK_N']}"
    columns = f"{sizes['BLOCK_C']}" if sizes["WHOLE"] else f"{sizes['BLOCK_C']}, {sizes['BLOCK_P']}"
    size = f"{dtype if kind != 'tf32' else kind} {pairs} x {columns}{'' if aligned else ' odd'}, {warps} warps"
    variant = ", listed keys" if listed_keys else ", blocks of keys"
    variant += ", no values" if statistics else ""
    name = ATTENTION[kernel] + (" of memory_accumulate" if kernel == "accumulate" else "")
    case = f"{name} {dtype if kind != 'tf32' else kind}, width {width}{variant}" + ", small groups" * small_groups
    needed = products(kernel, kind, width, sizes, statistics)
    pieces = 1 if sizes["WHOLE"] else triton.cdiv(width, sizes["BLOCK_C"])
    return Kernel(name, size + variant, types, constants, warps, stages, aligned, True, case, needed, pieces)


def products(kernel: str, kind: str, width: int, sizes: dict[str, Any], statistics: bool) -> dict[str, float]:
    """The multiply-adds that one pass of a block through the main loop is for, by kind of operands.

    Counts each product of the formula once. Where blocks compute parts of the columns and each computes the scores
    again, every block has its share of what is needed once.
    """
    count = {"forward": 1 if statistics else 2, "backward_query": 3, "backward_key": 4, "accumulate": 2}[kernel]
    one = sizes["BLOCK_M"] * sizes["BLOCK_N"] * width / triton.cdiv(width, sizes["BLOCK_P"])
    # fp32 is three products in tf32. Writes to the memory in half precision are summed in fp32.
    if kind == "half" and kernel == "accumulate":
        return {"half": one, "tf32": 3 * one}
    return {"half": count * one} if kind == "half" else {"tf32": count * one * (3 if kind == "fp32" else 1)}
