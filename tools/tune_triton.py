"""Measure which tile sizes of the attention kernels are fastest on this GPU: `python tools/tune_triton.py`.

    python tools/tune_triton.py --list [--chip 90] [--only forward,half]

Measures all candidates that fit the registers and the shared memory, and writes the fastest ones for this GPU into
kernels/tuned.py. With `--list` it only prints the candidates, which needs no GPU.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from pprint import pformat

import torch
import triton_compile
from triton.testing import do_bench

from showface.kernels import masked_correlation, memory, tiles, tuned

DTYPES = {"fp32": "fp32", "tf32": "fp32", "half": "fp16"}
TORCH_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "half": torch.float16}
WIDTHS = {tiles.ODD: 100, **{width: width for width in (16, 32, 64, 128, 256, 512)}}  # one width per width class
Key = tuple[str, str, int]


def candidates(key: Key) -> list[tiles.Tile]:
    """Tiles to measure. The first one is the tile in use."""
    kernel, kind, width = key
    used = tiles.look_up(kernel, kind, width)
    columns = [(64, 64)] if 0 < width <= 64 else [(used.piece, used.part), (32, 64), (64, 128), (64, 256), (128, 128)]
    pairs = [(16, 32), (32, 32), (32, 64), (64, 32), (64, 64), (128, 32), (128, 64)]
    found = [used]
    for (queries, keys), (piece, part), warps, stages in product(pairs, columns, (4, 8), (2, 3)):
        found.append(tiles.Tile(queries, keys, piece, part, warps, stages))
    return list(dict.fromkeys(found))


def passes(key: Key, chip: int, tile: tiles.Tile) -> bool:
    """Whether the tile compiles, fits the registers and the shared memory, and uses tensor cores."""
    kernel, kind, width = key
    one = triton_compile.attention_kernel(
        kernel, DTYPES[kind], kind, tile, WIDTHS[width], listed_keys=kernel != "accumulate"
    )
    try:
        built = triton_compile.compile_for(one, 80 if chip < 90 else 90 if chip < 100 else 100)
    except RuntimeError as error:  # Triton cannot compile every candidate
        print(key, *tile, error, flush=True)
        return False
    fits = built.shared <= triton_compile.CHIPS[built.chip] and built.spilled <= triton_compile.SPILL_LIMIT
    return fits and built.tensor_cores


def problem(key: Key) -> Callable[[], object]:
    """The call to measure: the operator that launches the kernel, with inputs large enough to fill a GPU."""
    kernel, kind, width = key
    options = {"dtype": TORCH_DTYPES[kind], "device": "cuda"}
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    if kernel == "accumulate":
        latent, slots = torch.randn(65536, WIDTHS[width], **options), torch.randn(19, 256, WIDTHS[width], **options)
        region = torch.randint(-1, 19, (65536,), device="cuda")
        return partial(memory.memory_accumulate, latent, slots, region, None, 16.0)
    tensors = [torch.randn(4, 4096, WIDTHS[width], **options) for _ in range(4)]
    rest = torch.rand(4, 4096, device="cuda") < 0.3, None, 16.0, False
    if kernel == "forward":
        return partial(masked_correlation.masked_correlation, *tensors[:3], *rest)
    out, lse = masked_correlation.masked_correlation(*tensors[:3], *rest)
    return partial(masked_correlation.masked_correlation_backward, *tensors, rest[0], out, lse, *rest[1:])


def measure(key: Key, choices: list[tiles.Tile], chip: int) -> tiles.Tile:
    """The fastest tile, or the tile in use (the first) unless another one is at least 2% faster."""
    run, durations = problem(key), {}
    for tile in choices:
        tuned.TUNED.setdefault(chip, {})[key] = tuple(tile)
        run()  # compiles
        durations[tile] = do_bench(run, return_mode="median")
    best = min(choices, key=durations.__getitem__)
    best = best if durations[best] < 0.98 * durations[choices[0]] else choices[0]
    print(key, *best, f"{1e3 * durations[best]:.0f} us, was {1e3 * durations[choices[0]]:.0f} us", flush=True)
    return best


def keys(only: str) -> Iterator[Key]:
    """The entries of the table of tiles that contain all words of `only`, separated by commas."""
    for key in product(tiles.KERNELS, tiles.KINDS, WIDTHS):
        if all(not word or word in map(str, key) for word in only.split(",")):
            yield key


def save(found: dict[Key, tiles.Tile], chip: int) -> None:
    """Rewrite kernels/tuned.py. Entries of other chips, and entries that were not measured, are kept."""
    defaults = {key: tile for key, tile in found.items() if tile == tiles.look_up(*key)}
    kept = tuned.TUNED.get(chip, {}) | {key: tuple(tile) for key, tile in found.items()}
    tuned.TUNED[chip] = {key: tile for key, tile in kept.items() if key not in defaults}
    path = Path(tuned.__file__)
    head = path.read_text().rsplit(" = ", 1)[0]
    path.write_text(f"{head} = {pformat(tuned.TUNED, width=118)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the candidates and measure nothing")
    parser.add_argument("--chip", type=int, help="compute capability, such as 90 for 9.0; default: that of the GPU")
    parser.add_argument(
        "--only",
        default="",
        help="words that an entry must contain, such as forward,half",
    )
    options = parser.parse_args()
    chip = options.chip or tiles.chip_of(torch.device("cuda"))
    results = {}
    # Spawn: forked processes would inherit the state of the CUDA driver.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for key in keys(options.only):
            every = candidates(key)
            choices = [x for x, good in zip(every, pool.map(partial(passes, key, chip), every), strict=True) if good]
            if options.list:
                print(key, f"{len(choices)} of {len(every)}:", *map(tuple, choices), flush=True)
            else:
                results[key] = measure(key, choices, chip)
    if results:
        save(results, chip)
