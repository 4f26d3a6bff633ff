"""Checkpoints of a training run, written atomically. Only the newest few are kept."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import torch

from showface.files import write_atomically


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `step-<step>.pt` into the folder, then delete all but the newest `keep`.

    Raises:
        OSError: the checkpoint can't be written, for example on a full disk. The other checkpoints stay unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"

    def write(temporary: Path) -> None:
        # Pass an open file, not its name: torch's own file writer hides the reason of a failed write.
        with temporary.open("wb") as file:
            torch.save(state, file)

    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:
        raise OSError(f"can't write the checkpoint {path}: {error}") from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in the newest intact checkpoint, on the CPU. Warns about newer ones that are damaged.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        ValueError: all of them are damaged.
    """
    paths = list_checkpoints(folder)
    if not paths:
        raise FileNotFoundError(f"nothing to resume: no checkpoint in {folder}")
    for path in reversed(paths):
        fault = _fault(path)
        if fault is None:
            try:
                return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # damage that no checksum covers raises almost any exception
                fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{path} is damaged and left out: {fault}", stacklevel=2)
    raise ValueError(f"nothing to resume: every checkpoint in {folder} is damaged")


def _fault(path: Path) -> str | None:
    """Return why a file is damaged, or None if it is intact.

    torch writes checksums but does not verify them on loading.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # a damaged header makes zipfile raise much more than BadZipFile
        return str(error) or type(error).__name__
    return part and f"{part} differs from its checksum"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators of the CPU and, if it is a GPU, of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set the random generators to what `random_state` returned, perhaps on another kind of device."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
