"""The recorded issue bounds of the attention kernels (see sass.py), and the comparison with them.

`issue_bounds.json` holds them in percent, by version of Triton, kernel and chip. `python tools/triton_compile.py
--update-bounds` records those of the installed Triton.
"""

import json
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_name("issue_bounds.json")
TOLERANCE = 1  # points
Bounds = dict[str, dict[str, int]]  # kernel: {chip: percent}


def load(path: Path = FILE) -> dict[str, Bounds]:
    """All recorded bounds, by version of the compiler."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(version: str, bounds: Bounds, path: Path = FILE) -> None:
    """Record the bounds of one version. Those of other versions are kept."""
    every = load(path) | {version: bounds}
    blocks = []
    for key in sorted(every):
        lines = ",\n".join(f"    {json.dumps(kernel)}: {json.dumps(chips)}" for kernel, chips in every[key].items())
        blocks.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def shortfalls(measured: Bounds, recorded: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What is wrong with the measured bounds: kernels that fall below what is recorded, or of which nothing is."""
    found = []
    for kernel, chips in measured.items():
        for chip, percent in chips.items():
            limit = recorded.get(kernel, {}).get(chip)
            if limit is None:
                found.append(f"{kernel}, sm_{chip}: {percent}%, and no bound is recorded")
            elif percent < limit - TOLERANCE:
                found.append(f"{kernel}, sm_{chip}: {percent}% instead of {limit}%")
    return found
