"""docs/performance.md matches the records in benchmarks/results, and `benchmarks/report.py` writes the right tables."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from memory_cases import SHAPES
from test_masked_correlation import gpu_problems

import report

ROOT = Path(__file__).parents[1]


def test_the_page_matches_the_records():
    page = (ROOT / "docs" / "performance.md").read_text()
    devices = report.read_records(ROOT / "benchmarks" / "results")
    assert devices
    assert page == report.page(page, devices)
    for device, records in devices.items():
        for name in report.pictures(report.groups_of(records)):
            assert (ROOT / "docs" / "pictures" / f"performance-{name}-{device}.png").is_file()


def correlation(milliseconds: dict[str, float], **case) -> dict:
    case = {"op": "masked_correlation", "mask": "blob", "tokens": 64, "channels": 8, "hole": 0.5, "batch": 4} | case
    results = {
        name: {"median_ms": x, "gflops": 1.0, "share_of_floor": 0.25, "peak_mib": 2.0}
        for name, x in milliseconds.items()
    }
    return {"case": case | {"dtype": "float32", "mode": "forward"}, "results": results}


def test_speedups_compare_the_fastest_peer_with_the_automatic_choice():
    group = correlation({"eager": 30.0, "gather": 8.0, "showface triton": 4.0, "showface cuda": 3.0})
    ((case, ours, milliseconds, peer, ratio),) = report.record.speedups([group])
    assert (case["tokens"], ours, milliseconds, peer, ratio) == (64, "showface triton", 4.0, "gather", 2.0)


def test_a_section_has_the_ratios_and_names_its_source():
    groups = {
        "a": correlation({"eager": 8.0, "showface cpp": 4.0}),
        "b": correlation({"eager": 8.0, "showface cpp": 1.0}, hole=0.1),
        "c": correlation({"eager": 3.0, "showface cpp": 2.0}, batch=1),
    }
    machine = {"device": "cpu", "processor": "X", "threads": 2, "torch": "2", "python": "3", "date": "2026-01-02"}
    text = report.section("cpu", {"masked_correlation": machine | {"groups": groups}})
    assert "`benchmarks/results/masked_correlation-cpu.json`: 2026-01-02, X, 2 threads, torch 2" in text
    assert "geometric mean 4.00 (minimum 2.00)" in text
    assert "| blob | 64 | 8 | 8.00 | 2.00 |" in text
    assert "| 1 x 64 x 8 | 50% | float32 | forward | 2.00 | 1.0 | 25% | 2.0 | 1.50 (eager) |" in text


def test_photos_are_timed_in_seconds():
    def group(**milliseconds: float) -> dict:
        case = {"op": "photos", "megapixels": 12, "faces": 6, "side": 1000}
        return {"case": case, "results": {name: {"median_ms": x} for name, x in milliseconds.items()}}

    text = report.photo_tables([group(showface=1500.0, telea=2000.0), group(showface=500.0)])
    assert "| megapixels | faces | pixels each | showface, s | telea, s |" in text
    assert "| 12 | 6 | 1000 | 1.50 | 2.00 |" in text
    assert "| 12 | 6 | 1000 | 0.50 | - |" in text


def test_a_profile_names_each_cost_under_every_label():
    labels = {
        "before": {"modes": {"inference": {"ms": 9.0, "largest": {"a": {"share": 0.5, "calls": 3}}}}},
        "now": {"modes": {"inference": {"ms": 6.0, "largest": {"b": {"share": 0.25, "calls": 1}}}}},
    }
    text = report.profile_tables(labels)
    assert "| operator | before: 9.0 ms | now: 6.0 ms |" in text
    assert "| `a` | 50.0% (3 calls) | not in the top ten |" in text
    assert "| `b` | not in the top ten | 25.0% (1 calls) |" in text


def test_a_record_is_written_by_operator(tmp_path):
    for op in ("one", "two"):
        report.record.add(f"{op} group", {"op": op, "mode": "read"}, {"product_gflops": 1.0}, {"x": {"median_ms": 1.5}})
    path = report.record.write("two", tmp_path)
    assert path.name.startswith("two-")
    assert list(tmp_path.iterdir()) == [path]
    record = report.record.read(path)
    assert list(record["groups"]) == ["two group"]
    assert record["groups"]["two group"]["results"] == {"x": {"median_ms": 1.5}}


def test_the_benchmarks_can_be_collected():
    """They are no part of the tests, so nothing else would notice that one can't be imported."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_gpu_has_half_precision_in_the_first_tables():
    """Its cases are other ones than a CPU's: the record starts with bfloat16, and not every size has every hole."""
    groups = {}
    for problem in gpu_problems():
        group = correlation({"gather, then varlen": 2.0, "showface triton": 1.0}) | {"case": asdict(problem)}
        groups[str(problem)] = group | {"floor": {}, "left_out": {"eager": "OutOfMemoryError"}}
    memory = {}
    for dtype in ("bfloat16", "float32"):
        case = {"op": "memory", **asdict(replace(SHAPES[0], dtype=dtype))}
        memory[dtype] = {"case": case, "results": correlation({"dense": 3.0, "showface triton": 1.0})["results"]}
    machine = {"device": "X100", "processor": "X", "threads": 2, "torch": "2", "python": "3", "date": "2026-01-02"}
    records = {"masked_correlation": machine | {"groups": groups}, "memory": machine | {"groups": memory}}
    text = report.section("x100", records)
    assert "| mask | tokens | channels | hole 10% | hole 30% | hole 50% |" in text
    assert "| strokes | 16384 | 128 |  | 2.00 |  |" in text
    assert "| strokes | 4096 | 64 | 2.00 | 2.00 | 2.00 |" in text
    assert "| 32 x 4096 x 128 | 30% | bfloat16 | forward | 1.00 |" in text
    assert "| 4 x 16384 x 64 | 30% | float32 | forward | 1.00 |" in text
    assert "256 channels, bfloat16 | read |" in text
    drawings = report.pictures(report.groups_of(records))
    assert list(drawings) == ["speedups"]
    figure = pytest.importorskip("matplotlib.figure").Figure()
    drawings["speedups"](figure)
    assert [len(axis.patches) for axis in figure.axes] == [13, 13, 1]


def test_a_file_of_an_unfinished_run_is_no_record(tmp_path):
    (tmp_path / "memory-cpu.json").write_text('{"a": 1}')
    (tmp_path / "memory-cpu.partial.json").write_text('{"a": 2}')
    assert report.read_records(tmp_path) == {"cpu": {"memory": {"a": 1}}}
