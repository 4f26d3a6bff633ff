"""What a run tells while it goes on: a progress bar, `log.jsonl` and TensorBoard's events."""

import json
import resource
import sys
from pathlib import Path
from types import TracebackType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from showface.files import write_text

LOG_FILE = "log.jsonl"


class Journal:
    """The records of a run, in its folder; a context manager, for one of its processes.

    Args:
        out: the folder of the run.
        step: the step that the run goes on from. What the log holds of later ones, which a stopped run had done and not
            saved, is dropped: they are done again.
        steps: how many there are to do.
    """

    def __init__(self, out: Path, step: int, steps: int) -> None:
        self.file = out / LOG_FILE
        if self.file.is_file():
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            if len(kept) < len(lines):
                write_text(self.file, "".join(f"{line}\n" for line in kept))
        self.events = SummaryWriter(out / "events", purge_step=step + 1 if step else None)
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task("train", total=steps, completed=step, status="")

    def __enter__(self) -> "Journal":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.events.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=step)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step, and show the most telling."""
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.progress.update(
            self.task,
            status=f"loss {values['total']:.4f}  {values['images_per_second']:.1f} images/s  "
            f"{values['waiting']:.0%} waiting for data  {values['memory_gib']:.1f} GiB",
        )

    def picture(self, step: int, image: Tensor) -> None:
        """Write an image (3, H, W) in [0, 1]."""
        self.events.add_image("samples", image, step)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.progress.console.print(text, highlight=False)


def peak_memory(device: torch.device) -> float:
    """The most memory that the run has taken so far on its device, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a run that was cut short
        return float("inf")
