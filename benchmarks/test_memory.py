"""memory_read and memory_write compared with alternatives in PyTorch: `pytest benchmarks/test_memory.py`.

A group is a shape, a dtype and a mode. All implementations of a group run in turns on the same tensors, after their
results were compared with the float64 definition.
"""

from dataclasses import asdict, replace
from functools import partial

import pytest
from measure import DEVICE
from memory_cases import MODES, SHAPES, Problem, implementations, prepare, why_left_out, work
from to_pytest import CLOCK, report

PROBLEMS = [
    replace(shape, dtype=dtype, mode=mode)
    for dtype in (("float32",) if DEVICE == "cpu" else ("bfloat16", "float32"))
    for shape in SHAPES
    for mode in MODES
]
CASES = [(problem, name) for problem in PROBLEMS for name in implementations(problem.mode, problem.dtype)]


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(
    ("problem", "name"), CASES, ids=[f"{case.shape}-{case.mode}-{case.dtype}-{name}" for case, name in CASES]
)
def test_memory(benchmark, problem: Problem, name: str) -> None:
    reason = why_left_out(name, problem)
    if reason:
        pytest.skip(reason)
    known = implementations(problem.mode, problem.dtype)
    names = tuple(each for each in known if why_left_out(each, problem) is None)
    case = {"op": "memory", **asdict(problem)}
    report(benchmark, case, name, partial(prepare, problem, names), work=work(problem), rounds=15)
