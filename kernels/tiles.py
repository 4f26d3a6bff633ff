"""Tile sizes of the attention kernels, by kernel, kind of operands and width of rows.

They are looked up in tables, not tuned at run time. A search would run kernels in the user's process, which a CUDA
graph capture forbids. It could also choose different tiles in different runs, and so change the last bits of sums.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from showface.kernels.tuned import TUNED


class Tile(NamedTuple):
    """Sizes of the tile that a program works on."""

    queries: int
    keys: int
    piece: int  # columns read at a time; rows up to this width are read whole
    part: int  # columns of the result per program, if rows are wider than a piece
    warps: int
    stages: int  # stages of Triton's software pipeline


# The largest tiles that fit the registers of sm_80 to sm_100 and the shared memory of sm_86, sm_89, sm_120 (99 KB).
# The inner keys are width classes: the larger of the two widths (keys, values), rounded up to a power of 2. Rows whose
# width is not a multiple of 16 cannot be read 16 bytes at a time and need more registers; their class is ODD.
ODD = 0
DEFAULT: dict[tuple[str, str], dict[int, Tile]] = {
    ("forward", "fp32"): {
        ODD: Tile(32, 32, 32, 64, 8, 2),
        64: Tile(64, 32, 64, 64, 8, 2),
        512: Tile(64, 32, 32, 128, 8, 2),
    },
    ("forward", "tf32"): {
        ODD: Tile(32, 32, 32, 64, 8, 2),
        64: Tile(64, 64, 64, 64, 8, 2),
        512: Tile(64, 64, 32, 128, 8, 3),
    },
    ("forward", "half"): {
        ODD: Tile(64, 32, 64, 64, 8, 3),
        64: Tile(64, 64, 64, 64, 4, 3),
        128: Tile(64, 64, 128, 128, 4, 2),
        512: Tile(64, 64, 64, 256, 8, 3),
    },
    ("backward_query", "fp32"): {
        ODD: Tile(32, 16, 32, 64, 8, 2),
        64: Tile(32, 32, 64, 64, 4, 2),
        512: Tile(32, 32, 32, 128, 8, 2),
    },
    ("backward_query", "tf32"): {
        ODD: Tile(32, 16, 32, 64, 8, 2),
        64: Tile(64, 32, 64, 64, 4, 2),
        512: Tile(64, 32, 32, 128, 8, 3),
    },
    ("backward_query", "half"): {
        ODD: Tile(32, 32, 64, 64, 8, 3),
        64: Tile(64, 64, 64, 64, 4, 2),
        128: Tile(64, 32, 128, 128, 4, 2),
        512: Tile(64, 64, 64, 256, 8, 3),
    },
    ("backward_key", "fp32"): {
        ODD: Tile(16, 32, 32, 64, 8, 2),
        32: Tile(16, 32, 64, 64, 4, 2),
        64: Tile(32, 32, 64, 64, 4, 2),
        512: Tile(32, 32, 32, 128, 8, 2),
    },
    ("backward_key", "tf32"): {
        ODD: Tile(16, 32, 32, 64, 8, 2),
        64: Tile(32, 64, 64, 64, 4, 2),
        512: Tile(32, 32, 32, 128, 8, 3),
    },
    ("backward_key", "half"): {
        ODD: Tile(32, 32, 64, 64, 8, 3),
        64: Tile(32, 64, 64, 64, 4, 2),
        128: Tile(32, 64, 128, 128, 8, 2),
        512: Tile(64, 64, 64, 128, 8, 3),
    },
    ("accumulate", "fp32"): {
        ODD: Tile(32, 32, 32, 64, 8, 2),
        64: Tile(32, 64, 64, 64, 4, 2),
        512: Tile(32, 64, 32, 128, 8, 2),
    },
    ("accumulate", "half"): {
        ODD: Tile(32, 32, 32, 64, 8, 2),
        64: Tile(32, 64, 64, 64, 4, 2),
        512: Tile(32, 64, 64, 128, 8, 2),
    },
}
# Larger tiles for some chips, by compute capability: those with the highest issue bound (docs/triton-kernels.md) among
# the candidates. sm_90 has more shared memory, and multiplies 64 rows at once in each group of 4 warps. They are used
# for groups that fill them.
OF_CHIP: dict[int, dict[tuple[str, str], dict[int, Tile]]] = {
    90: {
        ("forward", "fp32"): {64: Tile(128, 32, 64, 64, 8, 2)},
        ("forward", "tf32"): {64: Tile(128, 64, 64, 64, 8, 2), 128: Tile(128, 64, 128, 128, 8, 2)},
        ("forward", "half"): {
            64: Tile(128, 64, 64, 64, 4, 3),
            128: Tile(128, 128, 128, 128, 8, 2),
            256: Tile(128, 64, 256, 256, 8, 2),
        },
        ("backward_query", "tf32"): {64: Tile(128, 32, 64, 64, 8, 2), 128: Tile(64, 32, 128, 128, 4, 2)},
        ("backward_query", "half"): {
            64: Tile(128, 64, 64, 64, 8, 2),
            128: Tile(128, 64, 128, 128, 8, 2),
            256: Tile(64, 128, 64, 256, 8, 2),
        },
        ("backward_key", "tf32"): {64: Tile(32, 128, 64, 64, 8, 2)},
        ("backward_key", "half"): {
            64: Tile(64, 128, 64, 64, 8, 3),
            128: Tile(32, 128, 128, 128, 8, 2),
            256: Tile(64, 32, 256, 256, 8, 2),
        },
        ("accumulate", "fp32"): {64: Tile(32, 128, 64, 64, 8, 2), 512: Tile(32, 128, 64, 128, 8, 2)},
        ("accumulate", "tf32"): {64: Tile(64, 128, 64, 64, 8, 2), 512: Tile(32, 128, 64, 128, 8, 2)},
        ("accumulate", "half"): {
            64: Tile(64, 128, 64, 64, 8, 2),
            128: Tile(32, 64, 128, 128, 4, 2),
            512: Tile(32, 128, 64, 128, 8, 2),
        },
    }
}
# In the interpreter (on a CPU), a large tile takes about as long as a small one.
INTERPRETED = Tile(64, 64, 128, 256, 4, 1)
NORMS = {"BLOCK_M": 32, "BLOCK_C": 128}  # of inverse_norms_kernel
KERNELS = ("forward", "backward_query", "backward_key", "accumulate")
KINDS = ("fp32", "tf32", "half")
# If groups have fewer queries than this on average, tiles have 16 queries.
SMALL_GROUP = 32


def kind_of(dtype: torch.dtype, tf32: bool) -> str:
    """The kind of operands of products. fp32 needs more registers than tf32, and tf32 more than half precision."""
    if dtype.itemsize == 2:
        return "half"
    return "tf32" if tf32 else "fp32"


def width_class(channels: int, values: int) -> int:
    """Width class of rows with so many channels and values, used to look up tiles."""
    if channels % 16 or values % 16:
        return ODD
    return min(512, round_up(max(channels, values)))


def look_up(kernel: str, kind: str, width: int, chip: int = 0, group: float = math.inf) -> Tile:
    """The tile for a width class.

    chip: the compute capability, such as 90 for 9.0; 0: use the defaults. group: the queries of a group on average.
    """
    measured = TUNED.get(chip, {}).get((kernel, kind, width))
    if measured:
        return Tile(*measured)
    by_width = DEFAULT.get((kernel, kind)) or DEFAULT[kernel, "fp32"]
    own = OF_CHIP.get(chip, {}).get((kernel, kind), {})
    by_width = by_width | {limit: tile for limit, tile in own.items() if tile.queries <= group}
    return by_width[min(limit for limit in by_width if limit >= width and (limit == ODD) == (width == ODD))]


def constants(tile: Tile, kernel: str, channels: int, values: int, small_groups: bool = False) -> dict[str, Any]:
    """The compile-time constants of a kernel for this tile."""
    wider = max(channels, values)
    whole = (channels if kernel == "forward" else wider) <= tile.piece
    piece, part = tile.piece, tile.part
    if kernel == "forward":
        piece, part = min(piece, round_up(channels)), min(part, round_up(values))
    elif whole:
        piece = part = round_up(wider)
    queries, warps = (16, min(tile.warps, 4)) if small_groups else (tile.queries, tile.warps)
    return {
        "WHOLE": whole,
        "BLOCK_M": queries,
        "BLOCK_N": tile.keys,
        "BLOCK_C": piece,
        "BLOCK_P": part,
        "num_warps": warps,
        "num_stages": tile.stages,
    }


def round_up(width: int) -> int:
    """The next power of 2, at least 16, which tensor cores require."""
    return max(16, triton.next_power_of_2(width))


@cache
def chip_of(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
