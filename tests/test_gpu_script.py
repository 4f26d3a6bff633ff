"""`.ci/gpu`, the script for a machine with a CUDA device: its files exist, and it runs from end to end without one."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "gpu"
STEPS = ["packages", "build", "smoke", "test", "probe", "sanitize", "tune", "bench", "profile"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or not SCRIPT.exists(), reason="needs bash and the checkout on Linux"),
    pytest.mark.shared("gpu_script"),
]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with programs that stand for those of a machine with a GPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder / "nvidia-smi", "echo 9.0")
    # Leaves out its own options, and runs the program.
    stand_in(folder / "compute-sanitizer", 'while [[ $1 == --* ]]; do shift 2; done; exec "$@"')
    return folder


def stand_in(path: Path, commands: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{commands}\n")
    path.chmod(0o755)


def run(script: Path, tools: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True)


def test_dry_run_prints_commands_whose_files_exist(tools):
    done = run(SCRIPT, tools, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == STEPS
    for line in lines:
        for word in shlex.split(line):
            if re.fullmatch(r"(tests|benchmarks|tools)/\S+\.py", word):
                assert (ROOT / word).exists(), line


def test_unknown_steps_are_refused(tools):
    done = run(SCRIPT, tools, "smoke", "polish")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown step polish" in done.stderr


def test_a_failed_step_does_not_stop_the_others(tools, tmp_path):
    stand_in(tools / "compute-sanitizer", "exit 7")
    stand_in(tools / "nvidia-smi", "exit 1")
    stand_in(tools / "python", "echo python was called")
    results = {"SHOWFACE_RESULTS": str(tmp_path / "results")}
    done = run(SCRIPT, tools, "sanitize", "tune", **results)
    assert done.returncode == 1, done.stdout
    outcomes = [line.split("\t")[:2] for line in (tmp_path / "results" / "steps.tsv").read_text().splitlines()]
    assert outcomes == [["sanitize", "failed (7)"], ["tune", "passed"]]
    assert done.stdout.count("failed with 7") == 4  # its other commands ran too
    assert "python was called" in (tmp_path / "results" / "tune.log").read_text()

    stand_in(tools / "compute-sanitizer", "exit 0")
    again = run(SCRIPT, tools, **results)
    assert "== tune passed before" in again.stdout
    assert "== sanitize passed before" not in again.stdout


@pytest.mark.long
@pytest.mark.skipif(find_spec("ninja") is None or find_spec("pybind11") is None, reason="ninja or pybind11 is missing")
def test_all_steps_run(tools, tmp_path):
    """With the smallest sizes, on the emulator and in Triton's interpreter, in a copy of the checkout."""
    checkout = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".git", "build", "__pycache__", ".*_cache", "docs", "shared", "runs")
    shutil.copytree(ROOT, checkout, ignore=left_out, symlinks=True)
    (checkout / "build").mkdir()
    if (ROOT / "build" / "cuda-on-cpu").exists():  # the emulated kernels, compiled
        shutil.copytree(ROOT / "build" / "cuda-on-cpu", checkout / "build" / "cuda-on-cpu")
    results = tmp_path / "results"
    variables = {"SHOWFACE_RESULTS": str(results), "SHOWFACE_BUILD_CUDA": "0"}
    done = run(checkout / ".ci" / "gpu", tools, "--smoke", **variables)
    outcomes = [line.split("\t")[:2] for line in (results / "steps.tsv").read_text().splitlines()]
    assert outcomes == [[step, "passed"] for step in STEPS], done.stdout[-5000:]
    assert done.returncode == 0
    written = {path.name for path in results.iterdir()}
    assert {f"{step}.log" for step in STEPS} | {"tuning-cpu.json", "tests.xml"} <= written
    assert any(name.startswith("probe") for name in written)
    assert any(name.startswith("memory") for name in written)
    assert any(name.startswith("profile") and name.endswith(".json") for name in written)
    assert (checkout / "kernels" / "tuned.py").read_text() == (ROOT / "kernels" / "tuned.py").read_text()
