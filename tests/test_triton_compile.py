"""Compile checks of the Triton kernels: they compile for every chip and fit its resources."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.shared("triton_compile"),
]
ROOT = Path(__file__).parents[1]


# The short list has one chip, and widths with whole rows, rows in pieces, and odd rows. The long list has everything.
SHORT = ["--chips", "90", "--widths", "64", "100", "256"]


@pytest.fixture(scope="module", params=["short", pytest.param("all", marks=pytest.mark.long)])
def report(request) -> dict:
    # Use a separate process, because kernels may be interpreted in this one.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tools" / "triton_compile.py"), "--json"]
    command += SHORT if request.param == "short" else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) | {"short": request.param == "short"}


def test_every_kernel_is_compiled(report):
    assert {x["name"].split()[0] for x in report["compiled"]} == set(report["kernels"])


def test_nothing_spills(report):
    spilled = [x for x in report["compiled"] if x["spilled"] > report["spill_limit"]]
    assert not spilled


def test_shared_memory_fits(report):
    limits = report["shared_memory"]
    assert {str(x["chip"]) for x in report["compiled"]} == ({"90"} if report["short"] else set(limits))
    assert set(limits) == {"80", "90", "100"}
    too_large = [x for x in report["compiled"] if x["shared"] > limits[str(x["chip"])]]
    assert not too_large


def test_tensor_cores_are_used_where_meant(report):
    missing = [x for x in report["compiled"] if x["wants_tensor_cores"] and not x["tensor_cores"]]
    assert not missing


def test_masked_loads_say_what_fills_them(report):
    assert not report["loads_without_fill"]
