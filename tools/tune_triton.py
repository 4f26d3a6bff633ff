"""Measure the candidates of tools/tile_candidates.json on this GPU: `python tools/tune_triton.py`.

    python tools/tune_triton.py [--only forward,128] [--results FOLDER]

Compiles the candidates in parallel and measures them one by one. Each duration goes into FOLDER/tuning-DEVICE.json at
once, and what is there already is not measured again. After each entry, the fastest tile for this GPU is written into
kernels/tuned.py.

With `--smoke` it runs a few tiny calls on the CPU and leaves kernels/tuned.py alone; set TRITON_INTERPRET=1.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from pprint import pformat
from statistics import median

import tile_candidates
import torch
from tile_candidates import Key
from triton.testing import do_bench

from showface.files import write_text
from showface.kernels import masked_correlation, tiles, tuned

GAIN = 0.98  # a tile replaces the one in use if it takes at most this share of its time
Durations = dict[str, dict[str, float | str]]  # by entry and tile: milliseconds, or why it can't be measured


def problem(key: Key, smoke: bool = False) -> Callable[[], object]:
    """The call to measure: the operator that launches the kernel, with inputs large enough to fill a GPU."""
    kernel, _, width = key
    device = "cpu" if smoke else "cuda"
    batch, tokens = (1, 32) if smoke else (4, 4096)
    tensors = [torch.randn(batch, tokens, width, dtype=torch.bfloat16, device=device) for _ in range(4)]
    rest = torch.rand(batch, tokens, device=device) < 0.3, None, 16.0, False
    if kernel == "forward":
        return partial(masked_correlation.masked_correlation, *tensors[:3], *rest)
    out, lse = masked_correlation.masked_correlation(*tensors[:3], *rest)
    return partial(masked_correlation.masked_correlation_backward, *tensors, rest[0], out, lse, *rest[1:])


def use(key: Key, tile: tiles.Tile, chip: int) -> None:
    """Let the kernels of this process use a tile."""
    tuned.TUNED.setdefault(chip, {})[key] = tuple(tile)


def compile_tile(job: tuple[Key, tiles.Tile], chip: int) -> None:
    """Run a tile once, so that it is in Triton's cache. What is wrong with it shows when it is measured."""
    use(*job, chip)
    try:
        problem(job[0])()
        torch.cuda.synchronize()
    except Exception as error:
        print(*job[0], *job[1], f"{type(error).__name__}: {error}", flush=True)


def milliseconds(run: Callable[[], object], smoke: bool) -> float:
    """The median duration of a call."""
    if not smoke:
        return float(do_bench(run, return_mode="median"))
    durations = []
    for _ in range(3):
        begin = time.perf_counter()
        run()
        durations.append(1e3 * (time.perf_counter() - begin))
    return median(durations)


def measure(key: Key, choices: list[tiles.Tile], chip: int, smoke: bool, path: Path) -> tiles.Tile | None:
    """Measure what is not in the file yet. Returns the fastest tile, or None if the one in use is as fast."""
    every: Durations = json.loads(path.read_text()) if path.exists() else {}
    durations = every.setdefault(name_of(key), {})
    run = problem(key, smoke)
    for tile in choices:
        name = ",".join(map(str, tile))
        if name in durations:
            continue
        use(key, tile, chip)
        try:
            durations[name] = round(milliseconds(run, smoke), 4)
        except Exception as error:  # out of resources, for example: the others are measured all the same
            durations[name] = f"{type(error).__name__}: {error}"
        write_text(path, json.dumps(every, indent=1) + "\n")
        print(*key, name, durations[name], flush=True)
    times = {tile: x for tile in choices if isinstance(x := durations[",".join(map(str, tile))], float)}
    best = min(times, key=times.__getitem__, default=None)
    in_use = times.get(choices[0])
    return best if best is not None and (in_use is None or times[best] < GAIN * in_use) else None


def save(key: Key, tile: tiles.Tile | None, chip: int, kept: dict[Key, tuple[int, ...]]) -> None:
    """Write the tile of an entry into kernels/tuned.py, or remove the entry. Other entries and chips are kept."""
    kept.pop(key, None)
    if tile is not None:
        kept[key] = tuple(tile)
    tuned.TUNED[chip] = dict(kept)
    path = Path(tuned.__file__)
    head = path.read_text().rsplit(" = ", 1)[0]
    write_text(path, f"{head} = {pformat({x: y for x, y in tuned.TUNED.items() if y}, width=118)}\n")


def name_of(key: Key) -> str:
    return " ".join(map(str, key))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="words that an entry must contain, such as forward,128")
    parser.add_argument("--results", type=Path, default=Path("build/tuning"), help="folder of the durations")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, on any machine; kernels/tuned.py is not written"
    )
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        sys.exit("tune_triton.py needs a CUDA device; --smoke runs without one")
    chip = 90 if options.smoke else tiles.chip_of(torch.device("cuda"))
    device = "cpu" if options.smoke else torch.cuda.get_device_name()
    candidates = tile_candidates.read()
    compiled_for = next((str(x) for x in (chip, 90, 80) if x <= chip and str(x) in candidates), None)
    if compiled_for is None:
        sys.exit(f"tools/tile_candidates.json has no candidates for sm_{chip}: run tools/tile_candidates.py")
    jobs = {}
    for key in tile_candidates.keys(options.only):
        if found := candidates[compiled_for].get(name_of(key)):
            in_use = tiles.look_up(*key, chip)
            jobs[key] = list(dict.fromkeys([in_use, *(tiles.Tile(*tile) for tile in found)]))
    if options.smoke:
        jobs = {key: choices[:2] for key, choices in list(jobs.items())[:1]}
    else:
        # Spawn: forked processes would inherit the state of the CUDA driver.
        with ProcessPoolExecutor(min(12, os.cpu_count() or 1), get_context("spawn")) as pool:
            every = [(key, tile) for key, choices in jobs.items() for tile in choices]
            list(pool.map(partial(compile_tile, chip=chip), every))
    kept = dict(tuned.TUNED.get(chip, {}))
    device = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    options.results.mkdir(parents=True, exist_ok=True)
    for key, choices in jobs.items():
        best = measure(key, choices, chip, options.smoke, options.results / f"tuning-{device}.json")
        if not options.smoke and best is not None:
            save(key, best, chip, kept)


if __name__ == "__main__":
    main()
