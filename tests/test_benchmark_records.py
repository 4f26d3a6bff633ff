"""The benchmarks save what they measured after each case, and go on after an interruption. So does the probe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import probe
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


def test_the_probe_measures_without_pytest(tmp_path):
    (tmp_path / "pytest.py").write_text("raise ImportError('the probe must not need pytest')")
    paths = os.pathsep.join(str(path) for path in (tmp_path, ROOT, ROOT / "benchmarks"))
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "probe.py"),
        "--smoke",
        "--rounds",
        "2",
        "--minutes",
        "60",  # a busy machine may take longer than the default
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = record.read(record.path_of("probe", tmp_path))
    assert found["complete"] is True
    assert found["failed"] == {}
    assert [group["case"]["op"] for group in found["groups"].values()] == ["masked_correlation", "memory", "memory"]
    for group in found["groups"].values():
        assert group["floor"]["gflop"] > 0
        assert all(x["share_of_floor"] >= 0 and x["median_ms"] > 0 for x in group["results"].values())
        assert group["left_out"]["compiled " + next(iter(group["results"]))] == "only with --compiled"
    assert {"eager", "gather, then SDPA"} <= set(next(iter(found["groups"].values()))["results"])


def test_the_probe_goes_on_after_a_failure_and_saves_each_case(tmp_path, monkeypatch, capsys, empty):
    def run_trial(each: probe.Trial, rounds: int, compiled: bool) -> None:
        if each.case["mode"] == "read":
            raise RuntimeError("no memory\nleft")
        record.add(probe.group_name(each.case), each.case, {}, {})

    monkeypatch.setattr(probe, "run_trial", run_trial)
    monkeypatch.setattr(sys, "argv", ["probe.py", "--smoke", "--out", str(tmp_path)])
    probe.main()
    found = record.read(record.path_of("probe", tmp_path))
    assert list(found["failed"].values()) == ["RuntimeError: no memory"]
    assert [group["case"]["op"] for group in found["groups"].values()] == ["masked_correlation", "memory"]
    assert "failed: RuntimeError: no memory" in capsys.readouterr().out


def test_the_probe_lists_its_cases(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["probe.py", "--list", "--only", "channels=256"])
    probe.main()
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "masked_correlation strokes tokens=16384 channels=256 hole=0.3 batch=4 bfloat16 forward"
    assert sum(name.startswith("memory regions") for name in listed) == 4
