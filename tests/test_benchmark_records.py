"""The benchmarks save what they measured after each case, and go on after an interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import record

ROOT = Path(__file__).parents[1]
# A benchmark of two cases that measures nothing, and leaves in the middle if it is told so.
BENCHMARK = """
import os
import pytest
from interleaved import Checked
from to_pytest import CLOCK, report

@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("size", [1, 2])
def test_nothing(benchmark, size):
    if size == 2 and "LEAVE" in os.environ:
        os._exit(1)
    runs = {"showface": lambda: None}
    report(benchmark, {"op": "nothing", "size": size}, "showface", lambda: Checked(runs, {}), work=None, rounds=3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of benchmarks with this one, whose usual place for records is `results` beside it."""
    code = (ROOT / "benchmarks" / "conftest.py").read_text()
    usual = "import pathlib, record\nrecord.RESULTS = pathlib.Path(__file__).parent / 'results'\n"
    (tmp_path / "conftest.py").write_text(usual + code)
    (tmp_path / "test_nothing.py").write_text(BENCHMARK)
    return tmp_path


def run(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "benchmarks"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder), "-rs", *options]
    environment = os.environ | {"PYTHONPATH": paths} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_an_interrupted_run_is_saved_and_resumed(folder):
    out = folder / "out"
    record_path, partial_path = record.path_of("nothing", out), record.partial_path_of("nothing", out)
    assert run(folder, "--record-to", str(out), LEAVE="").returncode == 1
    assert [path.name for path in out.iterdir()] == [partial_path.name]
    saved = json.loads(partial_path.read_text())
    assert saved["complete"] is False
    assert list(saved["groups"]) == ["nothing size=1"]

    again = run(folder, "--record-to", str(out), "--resume")
    assert "already measured" in again.stdout
    assert f"resumed: 1 groups of {partial_path.name}" in again.stdout
    assert "nothing size=2: showface " in again.stdout
    assert [path.name for path in out.iterdir()] == [record_path.name]
    whole = json.loads(record_path.read_text())
    assert "complete" not in whole
    assert whole["groups"]["nothing size=1"] == saved["groups"]["nothing size=1"]
    assert list(whole["groups"]) == ["nothing size=1", "nothing size=2"]


def test_an_incomplete_run_does_not_replace_a_record_in_the_usual_place(folder):
    path = record.path_of("nothing", folder / "results")
    path.parent.mkdir()
    path.write_text("kept\n")
    done = run(folder, "--record", "-k", "1")
    assert "nothing is not recorded: not all of its tests were run; the measured groups are in" in done.stdout
    assert path.read_text() == "kept\n"
    assert list(json.loads(record.partial_path_of("nothing", path.parent).read_text())["groups"]) == ["nothing size=1"]
    assert "recorded: " in run(folder, "--record", "--resume").stdout
    assert list(json.loads(path.read_text())["groups"]) == ["nothing size=1", "nothing size=2"]


def test_resuming_needs_a_place():
    command = [sys.executable, "-m", "pytest", "--resume", "--collect-only", "benchmarks/test_installation.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "--resume needs --record or --record-to" in done.stderr


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_groups", {})
    monkeypatch.setattr(record, "_resumed", set())


@pytest.mark.usefixtures("empty")
def test_another_machine_or_version_is_not_resumed(tmp_path):
    assert record.resume("some", tmp_path) is None
    case = {"op": "some", "size": 1}
    record.save(record.path_of("some", tmp_path), record.machine() | {"torch": "1", "date": "x", "groups": {"g": case}})
    path = record.path_of("some", tmp_path)
    assert record.resume("some", tmp_path) == f"{path.name} is not resumed: it has another torch"
    assert not record.is_resumed("g")
    record.save(path, record.machine() | {"date": "x", "groups": {"g": {"case": case}}})
    assert record.resume("some", tmp_path) == f"resumed: 1 groups of {path.name}"
    assert record.is_resumed("g")


@pytest.mark.usefixtures("empty")
def test_reasons_for_leaving_out_a_peer_are_recorded(tmp_path):
    record.add("g", {"op": "some"}, {}, {"x": {"median_ms": 1.5}}, {"y": "RuntimeError: no kernel"})
    assert record.read(record.write("some", tmp_path))["groups"]["g"]["left_out"] == {"y": "RuntimeError: no kernel"}
