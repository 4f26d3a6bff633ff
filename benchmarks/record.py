"""Records of the benchmarks, small enough to commit: one JSON file per operator and device."""

import json
import platform
import re
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from measure import DEVICE

import showface
from showface.files import write_text

RESULTS = Path(__file__).parent / "results"
_groups: dict[str, dict[str, Any]] = {}


def add(group: str, case: dict[str, Any], floor: dict[str, float], results: dict[str, Any]) -> None:
    """Store the results of a group until `write`: times, rates and memory of each implementation."""
    _groups[group] = {"case": case, "floor": floor, "results": results}


def results(group: str) -> dict[str, Any]:
    return _groups[group]["results"]


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


def write(op: str, folder: Path = RESULTS) -> Path:
    """Write the added groups of an operator, and replace an earlier record."""
    path = folder / f"{op}-{device_name()}.json"
    save(path, machine() | {"groups": {name: x for name, x in _groups.items() if x["case"]["op"] == op}})
    return path


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
