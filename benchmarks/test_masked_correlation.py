"""masked_correlation compared with alternatives in PyTorch: `pytest benchmarks/test_masked_correlation.py`.

A group is a kind of mask, a size, a hole ratio, a dtype and a mode. All implementations of a group run in turns on the
same tensors, after their results were compared with the float64 definition.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

import pytest
from correlation_cases import IMPLEMENTATIONS, Problem, prepare, why_left_out, work
from measure import DEVICE
from to_pytest import CLOCK, report

MODES = ("forward", "forward and backward")


def cpu_problems() -> Iterator[Problem]:
    for mode in MODES:
        for tokens in (1024, 4096):
            for channels in (64, 256):
                for hole in (0.1, 0.3, 0.5):
                    yield Problem(tokens=tokens, channels=channels, hole=hole, mode=mode)
        for hole in (0.1, 0.3, 0.5):
            yield Problem(mask="blob", hole=hole, mode=mode)
        # Vary one size at a time, for one image, to show how the cost grows.
        one = Problem(batch=1, mode=mode)
        yield one
        yield from (replace(one, tokens=tokens) for tokens in (256, 1024, 16384))
        yield from (replace(one, channels=channels) for channels in (32, 128, 256, 512))
        yield from (replace(one, hole=hole) for hole in (0.02, 0.1, 0.5, 0.7, 0.9))
        yield from (replace(one, batch=batch) for batch in (2, 8))
        yield from (Problem(channels=channels, dtype="bfloat16", mode=mode) for channels in (64, 256))


def gpu_problems() -> Iterator[Problem]:
    """Half precision first, in which networks run on a GPU, then fewer cases in float32. Large problems come first."""
    sizes = {
        "bfloat16": [(4096, 32), (16384, 4), (4096, 4), (1024, 4)],  # tokens, batch
        "float32": [(4096, 4)],
    }
    for dtype, shapes in sizes.items():
        for mode in MODES:
            for tokens, batch in shapes:
                for channels in (64, 128, 256):
                    yield Problem(tokens=tokens, batch=batch, channels=channels, dtype=dtype, mode=mode)
            for channels in (64, 256):
                for hole in (0.1, 0.5):
                    yield Problem(channels=channels, hole=hole, dtype=dtype, mode=mode)
    for mode in MODES:
        yield from (Problem(tokens=tokens, mode=mode) for tokens in (1024, 16384))


PROBLEMS = list(cpu_problems() if DEVICE == "cpu" else gpu_problems())


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: "-".join(map(str, asdict(problem).values())))
def test_masked_correlation(benchmark, problem: Problem, name: str) -> None:
    reason = why_left_out(name, problem)
    if reason:
        pytest.skip(reason)
    names = tuple(each for each in IMPLEMENTATIONS if why_left_out(each, problem) is None)
    report(
        benchmark,
        {"op": "masked_correlation", **asdict(problem)},
        name,
        partial(prepare, problem, names),
        work=work(problem),
        rounds=15 if problem.tokens < 2000 else 5,
    )
