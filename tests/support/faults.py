"""Faults of files, injected below Python and Rust: `faults.c` is compiled, preloaded into a process, and armed."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = {"no space": 1, "I/O error": 2, "short write": 3, "kill": 4, "full disk": 5}
SOURCE = Path(__file__).with_name("faults.c")


def build(folder: Path) -> Path:
    """Compile the layer. Skips the test on a system without a C compiler or without LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("injecting faults needs Linux and a C compiler")
    library = folder / "faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def environment(library: Path, part: str = "", kind: str = "", at: int = 0) -> dict[str, str]:
    """The environment of a process with the layer; with `part`, it is armed from the start.

    Args:
        part: a part of the paths of the files on which calls count.
        kind: one of `KINDS`. "full disk" also fails all later calls, the others only one.
        at: the number of the call that goes wrong, from 1.
    """
    values = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if part:
        values |= {"FAULT_PART": part, "FAULT_KIND": str(KINDS[kind]), "FAULT_AT": str(at)}
    return values


def arm(part: str, kind: str, at: int) -> None:
    """Arm the layer within a process that has it; arguments as for `environment`."""
    ctypes.CDLL(None).faults_arm(os.fsencode(part), KINDS[kind], ctypes.c_long(at))


def seen() -> int:
    """The number of calls that counted since the layer was armed."""
    function = ctypes.CDLL(None).faults_seen
    function.restype = ctypes.c_long
    return int(function())
