"""Time several implementations in turns, so that a slow phase of the machine affects all of them.

pytest-benchmark times one test after another. Here, the first test of a group times all of its implementations, one
round of each in turn. It also times a matrix product and a copy, for the roofline (the records call it "floor"). Each
test then reports the measurements of its own implementation.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import measure
import pytest
import record
import torch
from measure import Run

Case = dict[str, str | int | float]


def is_right(name: str, check: Callable[[], None]) -> bool:
    """Return whether the check passes. A failed check of our own implementation raises AssertionError."""
    try:
        check()
    except AssertionError:
        if name.startswith("showface"):
            raise
        return False
    return True


class Clock:
    """A timer for pytest-benchmark that only moves when it is advanced, by durations measured before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()
GRAPH = " (graph)"
shuffle = random.Random(0)
_measured: dict[str, dict[str, list[float]]] = {}


@dataclass(frozen=True)
class Work:
    """The minimum work of a call: floating-point operations, and bytes that are read or written once."""

    flops: float
    bytes: float = 0.0


def report(
    benchmark: Any, case: Case, name: str, prepare: Callable[[], Mapping[str, Run]], *, work: Work | None, rounds: int
) -> None:
    """Report the durations of one implementation in a case to pytest-benchmark, and record them.

    Args:
        benchmark: the fixture, in a test marked with `benchmark(timer=CLOCK)`.
        case: identifies the measurement: `op`, `mode`, `dtype` and sizes. The tests of a case must run consecutively.
        name: the implementation.
        prepare: returns all implementations that can run here and give correct results. Peers with wrong results are
            left out; a wrong result of ours fails the test.
        work: the minimum work of the case; None if no rate is wanted.
        rounds: number of timed calls per implementation.
    """
    group = " ".join(str(value) if isinstance(value, str) else f"{key}={value}" for key, value in case.items())
    if group not in _measured:
        _measured.clear()
        _measured[group] = _time_all(group, case, prepare(), work, rounds)
    if name not in _measured[group]:
        pytest.skip("its result is wrong here, so it is not timed")
    durations = _measured[group][name]
    remaining = iter(durations)
    benchmark.group = group
    benchmark.extra_info.update(record.results(group)[name])
    benchmark.pedantic(lambda: CLOCK.advance(next(remaining)), rounds=len(durations))


def _time_all(
    group: str, case: Case, runs: Mapping[str, Run], work: Work | None, rounds: int
) -> dict[str, list[float]]:
    every = dict(runs)
    graphs = {name: graph for name, run in runs.items() if work and (graph := measure.replay(run))}
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
    if work:
        product_rate, copy_rate = product_flops / median(durations["product"]), copied / median(durations["copy"])
        floor = {"product_gflops": round(product_rate / 1e9, 1), "copy_gb_per_s": round(copy_rate / 1e9, 2)}
        least = max(work.flops / product_rate, work.bytes / copy_rate)
        for name, run in runs.items():
            results[name] |= {
                "gflops": round(work.flops / median(durations[name]) / 1e9, 1),
                "share_of_floor": round(least / median(durations[name]), 3),
                "peak_mib": round(measure.peak_mib(run), 2),
            }
    for name in graphs:
        results[name]["graph"] = _summary(durations[name + GRAPH])
    record.add(group, case, floor, results)
    return durations


def _summary(durations: list[float]) -> dict[str, Any]:
    low, middle, high = quantiles(durations, n=4)
    return {
        "median_ms": round(1e3 * middle, 4),
        "quartiles_ms": [round(1e3 * low, 4), round(1e3 * high, 4)],
        "rounds": len(durations),
    }
