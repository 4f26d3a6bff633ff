"""Compile checks of the Triton kernels: they compile for every chip, fit its resources and keep their issue bounds."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import issue_bounds
import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.shared("triton_compile"),
]
ROOT = Path(__file__).parents[1]


# Widths with whole rows, rows in pieces, and odd rows. The short list has them for one chip, the long list for all.
WIDTHS = ["--widths", "64", "100", "256"]
SHORT = ["--chips", "90", *WIDTHS]


# A kernel as it is, and with a worse tile: 8 warps for 32 rows.
WORSE = """
import dataclasses, json
from triton_compile import bounds, compile_for
from triton_kernels import attention_kernel
from showface.kernels import tiles

tile = tiles.look_up("forward", "half", 128)
both = [tile, tile._replace(queries=32, warps=8)]
done = [compile_for(attention_kernel("forward", "fp16", "half", x, 128, listed_keys=True), 90) for x in both]
print(json.dumps([[bounds([x]), dataclasses.asdict(x)] for x in done]))
"""


def run(*arguments: str):
    """What a program prints as JSON. Uses a separate process, because kernels may be interpreted in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["short", pytest.param("all chips", marks=pytest.mark.long)])
def report(request) -> dict:
    short = request.param == "short"
    command = [str(ROOT / "tools" / "triton_compile.py"), "--json"]
    return run(*command, *(SHORT if short else WIDTHS)) | {"short": short}


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


def test_issue_bounds_are_kept(report):
    recorded = issue_bounds.load().get(report["version"])
    if recorded is None:
        pytest.skip(f"no issue bounds are recorded for Triton {report['version']}: triton_compile.py --update-bounds")
    assert not issue_bounds.shortfalls(report["bounds"], recorded)


def test_issue_bounds_count_every_product(report):
    counted = [x for x in report["compiled"] if x["issue_bound"] is not None]
    wanted = [x for x in report["compiled"] if x["wants_tensor_cores"] and "all 1" not in x["size"]]
    assert counted == [x for x in wanted if x["chip"] in (80, 90)]
    assert len(counted) == len({(x["case"], x["chip"]) for x in counted}), "two kernels have the same case"
    # A main loop that does not do all of its products was not found, or not counted, as it should be.
    assert not [x for x in counted if x["repeated"] < 1]


def test_larger_tiles_are_for_groups_that_fill_them(monkeypatch):
    from showface.kernels import tiles

    monkeypatch.setattr(tiles, "TUNED", {})
    for (kernel, kind), by_width in tiles.OF_CHIP[90].items():
        for width, tile in by_width.items():
            assert tiles.look_up(kernel, kind, width, 90, tile.queries) == tile
            assert tiles.look_up(kernel, kind, width, 90, tile.queries - 1) == tiles.look_up(kernel, kind, width)
            assert tiles.look_up(kernel, kind, width, 80) == tiles.look_up(kernel, kind, width)
            assert tiles.look_up(kernel, kind, tiles.ODD, 90) == tiles.look_up(kernel, kind, tiles.ODD)


def test_a_worse_tile_falls_below_the_recorded_bound():
    (bounds, kernel), (worse_bounds, worse) = run("-c", WORSE)
    assert kernel["case"] == worse["case"]
    assert worse["issue_bound"] < kernel["issue_bound"] - issue_bounds.TOLERANCE
    assert len(issue_bounds.shortfalls(worse_bounds, bounds)) == 1
    assert not issue_bounds.shortfalls(bounds, bounds)
