"""Report the measurements of `interleaved` to pytest-benchmark.

pytest-benchmark times one test after another. Here, the first test of a group times all of its implementations. Each
test then reports the measurements of its own implementation.
"""

from collections.abc import Callable
from typing import Any

import pytest
import record
from interleaved import Case, Checked, Work, group_name, time_all


class Clock:
    """A timer for pytest-benchmark that only moves when it is advanced, by durations measured before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()
_measured: dict[str, tuple[Checked, dict[str, list[float]]]] = {}


def report(
    benchmark: Any, case: Case, name: str, prepare: Callable[[], Checked], *, work: Work | None, rounds: int
) -> None:
    """Report the durations of one implementation in a case to pytest-benchmark, and record them.

    Args:
        benchmark: the fixture, in a test marked with `benchmark(timer=CLOCK)`.
        case: identifies the measurement: `op`, `mode`, `dtype` and sizes. The tests of a case must run consecutively.
        name: the implementation.
        prepare: returns the implementations that can run here and give correct results. It raises an error if a result
            of ours is wrong.
        work: the minimum work of the case; None if no rate is wanted.
        rounds: number of timed calls per implementation.
    """
    group = group_name(case)
    skip_if_recorded(group)
    if group not in _measured:
        _measured.clear()
        checked = prepare()
        _measured[group] = checked, time_all(case, checked, work=work, rounds=rounds)
    checked, all_durations = _measured[group]
    if name not in checked.runs:
        pytest.skip(f"not timed: {checked.left_out[name]}")
    durations = all_durations[name]
    remaining = iter(durations)
    benchmark.group = group
    benchmark.extra_info.update(record.group(group)["results"][name])
    benchmark.pedantic(lambda: CLOCK.advance(next(remaining)), rounds=len(durations))


def skip_if_recorded(group: str) -> None:
    """Skip a test whose group was taken from an earlier record."""
    if record.is_resumed(group):
        pytest.skip("already measured")
