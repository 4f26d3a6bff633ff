"""Tile sizes of the attention kernels, by kernel, kind of numbers and width of rows.

They are looked up, not tuned at run time: a search would run kernels in the user's process (which a CUDA graph capture
forbids), and could end with other tiles, so with sums in another order and other last bits, from one run to the next.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from showface.kernels.tuned import TUNED


class Tile(NamedTuple):
    """What a program works on at a time."""

    queries: int
    keys: int
    piece: int  # columns of rows that are read at a time; rows up to this width are read whole
    part: int  # columns of the result that one program computes, where rows are wider than a piece
    warps: int
    stages: int  # pieces that are on their way from memory at a time


# As large as the registers from sm_80 to sm_100 hold, with shared memory that sm_86, sm_89 and sm_120 have too (99 KB).
# By width: the power of 2 that the wider one of keys and values is rounded up to. Rows of widths that are no multiples
# of 16 can't be read 16 bytes at a time, which takes more registers: whatever their width, theirs is ODD.
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
        128: Tile(64, 64, 128, 128, 8, 2),
        512: Tile(64, 64, 64, 256, 8, 3),
    },
    ("backward_query", "fp32"): {
        ODD: Tile(32, 16, 32, 64, 8, 2),
        64: Tile(32, 32, 64, 64, 8, 2),
        512: Tile(32, 32, 32, 128, 8, 2),
    },
    ("backward_query", "tf32"): {
        ODD: Tile(32, 16, 32, 64, 8, 2),
        64: Tile(64, 32, 64, 64, 8, 2),
        512: Tile(64, 32, 32, 128, 8, 3),
    },
    ("backward_query", "half"): {
        ODD: Tile(32, 32, 64, 64, 8, 3),
        64: Tile(64, 64, 64, 64, 8, 2),
        128: Tile(64, 32, 128, 128, 8, 2),
        512: Tile(64, 64, 64, 256, 8, 3),
    },
    ("backward_key", "fp32"): {
        ODD: Tile(16, 32, 32, 64, 8, 2),
        64: Tile(32, 32, 64, 64, 8, 2),
        512: Tile(32, 32, 32, 128, 8, 2),
    },
    ("backward_key", "tf32"): {
        ODD: Tile(16, 32, 32, 64, 8, 2),
        64: Tile(32, 64, 64, 64, 8, 2),
        512: Tile(32, 32, 32, 128, 8, 3),
    },
    ("backward_key", "half"): {
        ODD: Tile(32, 32, 64, 64, 8, 3),
        64: Tile(32, 64, 64, 64, 8, 2),
        128: Tile(32, 64, 128, 128, 8, 2),
        512: Tile(64, 64, 64, 128, 8, 3),
    },
    ("accumulate", "fp32"): {
        ODD: Tile(32, 32, 32, 64, 8, 2),
        64: Tile(32, 64, 64, 64, 8, 2),
        512: Tile(32, 64, 32, 128, 8, 2),
    },
    ("accumulate", "half"): {
        ODD: Tile(32, 32, 32, 64, 8, 2),
        64: Tile(32, 64, 64, 64, 8, 2),
        512: Tile(32, 64, 64, 128, 8, 2),
    },
}
KERNELS = ("forward", "backward_query", "backward_key", "accumulate")
KINDS = ("fp32", "tf32", "half")
# Groups of fewer queries than this, on average, get tiles of 16.
SMALL_GROUP = 32


def kind_of(dtype: torch.dtype, tf32: bool) -> str:
    """What products are made of: float32 takes more registers than tf32, and that more than half precision."""
    if dtype.itemsize == 2:
        return "half"
    return "tf32" if tf32 else "fp32"


def width_class(channels: int, values: int) -> int:
    """What of the tables rows of such keys and values belong to."""
    if channels % 16 or values % 16:
        return ODD
    return min(512, round_up(max(channels, values)))


def look_up(kernel: str, kind: str, width: int, chip: int | None = None) -> Tile:
    """The tile for a class of widths, on a chip of this compute capability (as 90 for 9.0)."""
    measured = TUNED.get(chip or 0, {}).get((kernel, kind, width))
    if measured:
        return Tile(*measured)
    by_width = DEFAULT.get((kernel, kind)) or DEFAULT[kernel, "fp32"]
    return by_width[min(limit for limit in by_width if limit >= width and (limit == ODD) == (width == ODD))]


def constants(tile: Tile, kernel: str, channels: int, values: int, small_groups: bool = False) -> dict[str, Any]:
    """What the kernel is compiled for."""
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
    """The next power of 2, from 16 on, which tensor cores need."""
    return max(16, triton.next_power_of_2(width))


@cache
def chip_of(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
