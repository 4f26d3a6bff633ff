"""Choose tile sizes that are worth measuring on a GPU: `python tools/tile_candidates.py`. Needs no GPU.

    python tools/tile_candidates.py [--chip 90] [--only forward,128] [--count 10]

Compiles all tiles in half precision for one architecture and leaves out those that spill or need too much shared
memory. The ones with the highest issue bound (docs/triton-kernels.md) go into tools/tile_candidates.json, for
tools/tune_triton.py to measure.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import triton_compile
import triton_kernels

from showface.files import write_text
from showface.kernels import tiles

PATH = Path(__file__).with_name("tile_candidates.json")
WIDTHS = (64, 128, 256)  # those that networks use most
KERNELS = ("forward", "backward_query", "backward_key")
ALIKE = 2  # candidates that differ only in columns and stages
Key = tuple[str, str, int]  # kernel, kind of operands, width class


def keys(only: str) -> Iterator[Key]:
    """The entries of the table of tiles that are tuned, if they contain all words of `only`, separated by commas."""
    for key in product(KERNELS, ("half",), WIDTHS):
        if all(not word or word in map(str, key) for word in only.split(",")):
            yield key


def every_tile(key: Key, chip: int) -> list[tiles.Tile]:
    """All tiles for an entry, from small to large."""
    kernel, kind, width = key
    used = tiles.look_up(kernel, kind, width, chip)
    columns = [(64, 64)] if width == 64 else [(used.piece, used.part), (64, 128), (width, width)]
    pairs = [(16, 32), (32, 32), (32, 64), (32, 128), (64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128)]
    found = [
        tiles.Tile(queries, keys, piece, part, warps, stages)
        for (queries, keys), (piece, part), warps, stages in product(pairs, dict.fromkeys(columns), (4, 8), (2, 3))
    ]
    return list(dict.fromkeys([used, *found]))


def bound_of(key: Key, chip: int, tile: tiles.Tile) -> int | None:
    """The issue bound in percent, or None if the tile does not compile or does not fit."""
    kernel, kind, width = key
    try:
        one = triton_kernels.attention_kernel(kernel, "bf16", kind, tile, width, listed_keys=True)
        built = triton_compile.compile_for(one, chip)
    except Exception as error:  # Triton has no common class for the many reasons why it can't compile a tile
        print(key, *tile, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
        return None
    fits = built.shared <= triton_compile.CHIPS[chip] and built.spilled <= triton_compile.SPILL_LIMIT
    return built.issue_bound if fits and built.tensor_cores else None


def choose(bounds: dict[tiles.Tile, int | None], count: int) -> list[tiles.Tile]:
    """The tiles with the highest bounds, of which at most ALIKE have the same queries, keys and warps."""
    chosen: list[tiles.Tile] = []
    alike: Counter[tuple[int, int, int]] = Counter()
    for tile in sorted((x for x in bounds if bounds[x] is not None), key=lambda x: -(bounds[x] or 0)):
        kind = tile.queries, tile.keys, tile.warps
        if len(chosen) < count and alike[kind] < ALIKE:
            alike[kind] += 1
            chosen.append(tile)
    return chosen


def read() -> dict[str, dict[str, list[list[int]]]]:
    """The candidates by architecture and entry, such as {"90": {"forward half 64": [[64, 64, 64, 64, 4, 3], ...]}}."""
    found: dict[str, dict[str, list[list[int]]]] = json.loads(PATH.read_text()) if PATH.exists() else {}
    return found


def write(candidates: dict[str, dict[str, list[list[int]]]]) -> None:
    lines = []
    for chip, by_key in sorted(candidates.items()):
        entries = [f'  "{key}": {json.dumps(tiles_of_key)}' for key, tiles_of_key in sorted(by_key.items())]
        lines.append(f' "{chip}": {{\n' + ",\n".join(entries) + "\n }")
    write_text(PATH, "{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", type=int, default=90, choices=sorted(triton_compile.CHIPS), help="default: 90")
    parser.add_argument("--only", default="", help="words that an entry must contain, such as forward,128")
    parser.add_argument("--count", type=int, default=10, help="candidates for each entry")
    options = parser.parse_args()
    candidates = read()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for key in keys(options.only):
            every = every_tile(key, options.chip)
            bounds = dict(zip(every, pool.map(partial(bound_of, key, options.chip), every), strict=True))
            chosen = choose(bounds, options.count)
            print(*key, *(f"{','.join(map(str, tile))}: {bounds[tile]}%" for tile in chosen), flush=True)
            candidates.setdefault(str(options.chip), {})[" ".join(map(str, key))] = [list(tile) for tile in chosen]
            write(candidates)


if __name__ == "__main__":
    main()
