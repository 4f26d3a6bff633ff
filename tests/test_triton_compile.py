"""The gate for Triton kernels: they compile for every chip, and fit it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report() -> dict:
    # In a process of its own: in this one the kernels may be interpreted ones.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tools" / "triton_compile.py"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_nothing_spills(report):
    spilled = [x for x in report["compiled"] if x["spilled"] > report["spill_limit"]]
    assert not spilled


def test_shared_memory_fits(report):
    limits = report["shared_memory"]
    assert {str(x["chip"]) for x in report["compiled"]} == set(limits) == {"80", "90", "100"}
    too_large = [x for x in report["compiled"] if x["shared"] > limits[str(x["chip"])]]
    assert not too_large


def test_tensor_cores_are_used_where_meant(report):
    missing = [x for x in report["compiled"] if x["wants_tensor_cores"] and not x["tensor_cores"]]
    assert not missing


def test_masked_loads_say_what_fills_them(report):
    assert not report["loads_without_fill"]
