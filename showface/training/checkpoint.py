"""Checkpoints of a training run: whole or not there, and only the newest few."""

import re
from pathlib import Path
from typing import Any

import torch

from showface.files import write_atomically


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `step-<step>.pt` into the folder, then delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's state, on the CPU.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
    """
    paths = list_checkpoints(folder)
    if not paths:
        raise FileNotFoundError(f"nothing to resume: no checkpoint in {folder}")
    return torch.load(paths[-1], map_location="cpu", weights_only=True)
