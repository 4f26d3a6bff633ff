"""Check several implementations, then time them in turns, so that a slow phase of the machine affects all of them.

One round of each implementation runs in turn. A matrix product and a copy are timed too, for the roofline (the records
call it "floor").
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import measure
import record
import torch
from measure import Run

Case = dict[str, str | int | float]
GRAPH = " (graph)"
shuffle = random.Random(0)


@dataclass(frozen=True)
class Work:
    """The minimum work of a call: floating-point operations, and bytes that are read or written once."""

    flops: float
    bytes: float = 0.0


@dataclass(frozen=True)
class Checked:
    """The implementations with right results, and for each other one the reason why it is not timed."""

    runs: Mapping[str, Run]
    left_out: Mapping[str, str]


def is_ours(name: str) -> bool:
    return name.startswith("showface")


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message, shortened."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def check_all(runs: Mapping[str, Run], check: Callable[[Any], None], *, keep_going: bool = False) -> Checked:
    """Run each implementation once, and keep those with right results.

    Args:
        runs: the implementations by name.
        check: gets a result, and raises AssertionError if it is wrong.
        keep_going: leave out ours too if it fails. Otherwise its error is raised.
    """
    right, left_out = {}, {}
    for name, run in runs.items():
        try:
            check(run())
        except Exception as error:
            if is_ours(name) and not keep_going:
                raise
            left_out[name] = first_line(error)
        else:
            right[name] = run
    return Checked(right, left_out)


def group_name(case: Case) -> str:
    return " ".join(str(value) if isinstance(value, str) else f"{key}={value}" for key, value in case.items())


def time_all(
    case: Case, checked: Checked, *, work: Work | None, rounds: int, keep_going: bool = False
) -> dict[str, list[float]]:
    """Time the implementations of a case in turns, add the results to the record, and return all durations.

    Args:
        case: identifies the measurement: `op`, `mode`, `dtype` and sizes.
        checked: the implementations.
        work: the minimum work of the case; None if no rate is wanted.
        rounds: number of timed calls per implementation.
        keep_going: as in `check_all`, for ours that can't be captured as a CUDA graph.
    """
    runs, left_out = checked.runs, dict(checked.left_out)
    every, graphs = dict(runs), {}
    for name, run in runs.items() if work else ():
        try:
            graph = measure.replay(run)
        except Exception as error:
            if is_ours(name) and not keep_going:
                raise
            left_out[name + GRAPH] = first_line(error)
            continue
        if graph:
            graphs[name] = graph
    every |= {name + GRAPH: graph for name, graph in graphs.items()}
    if work:
        product, product_flops = measure.product(getattr(torch, str(case["dtype"])))
        copy, copied = measure.copy()
        every |= {"product": product, "copy": copy}
    for run in every.values():
        run()
    durations: dict[str, list[float]] = {name: [] for name in every}
    order = list(every)
    for _ in range(rounds):
        # A random order, so that data left in the caches doesn't always favour the same implementation.
        shuffle.shuffle(order)
        for name in order:
            durations[name].append(measure.seconds(every[name], launches=not name.endswith(GRAPH)))
    results = {name: _summary(durations[name]) for name in runs}
    floor = {}
    for name in graphs:
        results[name]["graph"] = _summary(durations[name + GRAPH])
    if work:
        product_rate, copy_rate = product_flops / median(durations["product"]), copied / median(durations["copy"])
        floor = {"product_gflops": round(product_rate / 1e9, 1), "copy_gb_per_s": round(copy_rate / 1e9, 2)}
        floor |= {"gflop": round(work.flops / 1e9, 6), "mib": round(work.bytes / 2**20, 3)}
        least = max(work.flops / product_rate, work.bytes / copy_rate)
        for name, run in runs.items():
            results[name] |= {
                "gflops": round(work.flops / median(durations[name]) / 1e9, 1),
                "share_of_floor": round(least / median(durations[name]), 3),
                "peak_mib": round(measure.peak_mib(run), 2),
            }
        for name in graphs:
            results[name]["graph"]["share_of_floor"] = round(least / median(durations[name + GRAPH]), 3)
    record.add(group_name(case), case, floor, results, left_out)
    return durations


def _summary(durations: list[float]) -> dict[str, Any]:
    low, middle, high = quantiles(durations, n=4)
    return {
        "median_ms": round(1e3 * middle, 4),
        "quartiles_ms": [round(1e3 * low, 4), round(1e3 * high, 4)],
        "rounds": len(durations),
    }
