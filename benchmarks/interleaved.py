"""Time several implementations in turns, so that whatever slows the machine down meets all of them.

pytest-benchmark times one test after another. Here the first test of a group times every implementation of it, a round
of each at a time, and each test then reports what was measured for its own.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Run = Callable[[], Any]


class Clock:
    """What pytest-benchmark reads as the time: it moves only by the durations it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()
_measured: dict[str, dict[str, list[float]]] = {}


def seconds(run: Run, device: str) -> float:
    """How long one call takes; on a GPU between two events, with its caches emptied before."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    torch.empty(2**28, dtype=torch.int8, device=device).zero_()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    run()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3


def report(
    benchmark: Any, group: str, name: str, prepare: Callable[[], Mapping[str, Run]], *, device: str, rounds: int
) -> None:
    """Report the durations of implementation `name` in `group` to pytest-benchmark.

    Args:
        benchmark: the fixture, of a test marked with `benchmark(timer=CLOCK)`.
        group: tells the measurements apart; the tests of a group must follow one another.
        name: one of the implementations.
        prepare: gives every implementation that can run here, each checked for correctness.
        device: "cpu" or "cuda".
        rounds: how often each of them is timed.
    """
    if group not in _measured:
        _measured.clear()
        runs = prepare()
        for run in runs.values():
            run()
        durations: dict[str, list[float]] = {each: [] for each in runs}
        for _ in range(rounds):
            for each, run in runs.items():
                durations[each].append(seconds(run, device))
        _measured[group] = durations
    remaining = iter(_measured[group][name])
    benchmark.group = group
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    benchmark.pedantic(lambda: CLOCK.advance(next(remaining)), rounds=rounds)
