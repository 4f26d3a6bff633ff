"""Broken image files of every format: each gives a result or one clear line."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import showface
from showface.data.images import FORMATS

import fuzz_files

ROOT = Path(showface.__file__).parents[1]
PART, PARTS = 1000, 10


def fuzz(first: int, count: int) -> None:
    arguments = ["--first", str(first), "--cases", str(count), "--processes", "1"]
    command = [sys.executable, str(ROOT / "tools" / "fuzz_files.py"), *arguments]
    environment = {**fuzz_files.os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"{count} cases, 0 failures"


def test_some_broken_files():
    fuzz(PART * PARTS, 100)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_many_broken_files(part):
    fuzz(part * PART, PART)


def test_every_format_is_broken():
    files = fuzz_files.seeds()
    assert {name for name, _ in files} == {name for name in FORMATS if name in Image.SAVE}
    cases = [fuzz_files.case(files, number) for number in range(200)]
    assert cases == [fuzz_files.case(files, number) for number in range(200)]
    assert sum(data != files[number % len(files)][1] for number, data in enumerate(cases)) > 180


@pytest.mark.parametrize(
    ("error", "problem"),
    [(KeyError("x"), "read_image: KeyError: 'x'"), (OSError("two\nlines"), "read_image: the message is not one line")],
)
def test_what_counts_as_a_failure(monkeypatch, tmp_path, error, problem):
    def read_image(source):
        raise error

    monkeypatch.setattr(fuzz_files, "read_image", read_image)
    assert fuzz_files.check(b"", tmp_path).startswith(problem)


def test_half_written_files_are_found(monkeypatch, tmp_path):
    data = next(data for name, data in fuzz_files.seeds() if name == "PNG")
    assert fuzz_files.check(data, tmp_path) is None
    (tmp_path / ".out-half.png").write_bytes(b"half")
    assert "it left ['.out-half.png']" in fuzz_files.check(data, tmp_path)
