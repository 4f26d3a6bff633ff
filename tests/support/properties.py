"""Running a check on many inputs that Hypothesis chooses, the same in every run."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

EXAMPLES, MANY = 40, 400
both_lists = pytest.mark.parametrize("count", [EXAMPLES, pytest.param(MANY, marks=pytest.mark.long)])


def run_many(count: int, strategy: Any, check: Any) -> None:
    """Run `check` on `count` inputs, which follow from the names of the test and from SHOWFACE_SEED, if it is set.

    A failure shows the smallest input that fails, and repeats in the next run with the same seed.
    """
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)
    test = options(given(strategy)(check))
    chosen = os.environ.get("SHOWFACE_SEED")
    (seed(int(chosen))(test) if chosen else test)()
