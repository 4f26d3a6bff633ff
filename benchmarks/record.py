"""Records of the benchmarks, small enough to commit: one JSON file per operator and device."""

import json
import platform
import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from measure import DEVICE

import showface
from showface.files import write_text

RESULTS = Path(__file__).parent / "results"
PARTIAL = ".partial.json"
_groups: dict[str, dict[str, Any]] = {}
_resumed: set[str] = set()


def add(
    group: str,
    case: dict[str, Any],
    floor: dict[str, float],
    results: dict[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Store the results of a group until `write`: times, rates and memory of each implementation.

    `left_out` has the reasons why other implementations were not timed.
    """
    _groups[group] = {"case": case, "floor": floor, "results": results}
    if left_out:
        _groups[group]["left_out"] = dict(left_out)


def group(name: str) -> dict[str, Any]:
    return _groups[name]


def number_of_groups(op: str) -> int:
    return sum(group["case"]["op"] == op for group in _groups.values())


def last_group() -> str:
    """One line on the group that was added last: its name, and the median times in ms."""
    name, group = list(_groups.items())[-1]
    times = ", ".join(f"{each} {x['median_ms']}" for each, x in group["results"].items() if "median_ms" in x)
    return f"{name}: {times}"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    """The device, and versions of the software."""
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "showface": showface.__version__,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def path_of(op: str, folder: Path = RESULTS) -> Path:
    return folder / f"{op}-{device_name()}.json"


def partial_path_of(op: str, folder: Path = RESULTS) -> Path:
    """Where the groups measured so far are kept until the record is written."""
    return path_of(op, folder).with_suffix(PARTIAL)


def write(op: str, folder: Path = RESULTS) -> Path:
    """Write the added groups of an operator, and replace an earlier record."""
    path = path_of(op, folder)
    save(path, machine() | {"groups": _groups_of(op)})
    partial_path_of(op, folder).unlink(missing_ok=True)
    return path


def write_partial(op: str, folder: Path = RESULTS) -> Path:
    """Write the groups added so far beside the record, which stays as it is."""
    path = partial_path_of(op, folder)
    save(path, machine() | {"complete": False, "groups": _groups_of(op)})
    return path


def write_all(path: Path, more: dict[str, Any]) -> None:
    """Write the added groups of all operators to one file, with `more` values."""
    save(path, machine() | more | {"groups": _groups})


def _groups_of(op: str) -> dict[str, Any]:
    return {name: group for name, group in _groups.items() if group["case"]["op"] == op}


def resume(op: str, folder: Path = RESULTS) -> str | None:
    """Take over the groups of an interrupted run, or else those of the record.

    Returns:
        What was taken, or why nothing was; None if there is no earlier run.
    """
    path = next((path for path in (partial_path_of(op, folder), path_of(op, folder)) if path.exists()), None)
    if path is None:
        return None
    found, now = read(path), machine()
    other = [key for key in now if key != "date" and found.get(key) != now[key]]
    if other:
        return f"{path.name} is not resumed: it has another {' and '.join(other)}"
    _groups.update(found["groups"])
    _resumed.update(found["groups"])
    return f"resumed: {len(found['groups'])} groups of {path.name}"


def is_resumed(group: str) -> bool:
    """Whether the group was measured by an earlier run."""
    return group in _resumed


def device_name() -> str:
    """The device's name, as used in file names."""
    return re.sub(r"[^a-z0-9]+", "-", machine()["device"].lower()).strip("-")


def save(path: Path, values: dict[str, Any]) -> None:
    """Write JSON, with each innermost object on one line."""
    text = re.sub(r"\{[^{}]*\}", lambda match: re.sub(r"\s*\n\s*", " ", match.group()), json.dumps(values, indent=1))
    write_text(path, text + "\n")


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def speedups(groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str, float, str, float]]:
    """For each group: its case, our implementation and its time in ms, the fastest peer, and our speedup over it.

    "Ours" is our first recorded implementation, which "auto" chooses, even if another one of ours is faster.
    """
    rows = []
    for group in groups:
        times = {name: x["median_ms"] for name, x in group["results"].items()}
        ours = {name: x for name, x in times.items() if name.startswith("showface")}
        peers = {name: x for name, x in times.items() if name not in ours}
        if ours and peers:
            name, peer = next(iter(ours)), min(peers, key=peers.__getitem__)
            rows.append((group["case"], name, ours[name], peer, peers[peer] / ours[name]))
    return rows
