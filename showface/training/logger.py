"""The logger of a run: a progress bar, `log.jsonl` and TensorBoard's events."""

import json
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from showface.files import write_text

LOG_FILE = "log.jsonl"


class NullLogger:
    """A logger that writes nothing, for all processes but the first."""

    def __enter__(self) -> "NullLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, step: int) -> None:
        """Move the progress bar."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step, and show the main ones beside the bar."""

    def image(self, step: int, image: Tensor) -> None:
        """Log an image (3, H, W) in [0, 1]."""

    def message(self, text: str) -> None:
        """Print a line above the bar."""


class Logger(NullLogger):
    """Writes the logs of a run into its folder; a context manager, for the first process.

    Args:
        out: the folder of the run.
        step: the step at which the run starts or resumes. Log entries of later steps are dropped: a stopped run did
            these steps without saving them, and they are done again.
        steps: the number of steps of the whole run.
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

    def __enter__(self) -> "Logger":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.events.close()

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.progress.update(
            self.task,
            status=f"loss {values['total']:.4f}  {values['images_per_second']:.1f} images/s  "
            f"{values['waiting']:.0%} waiting for data  {values['memory_gib']:.1f} GiB",
        )

    def image(self, step: int, image: Tensor) -> None:
        self.events.add_image("samples", image, step)

    def message(self, text: str) -> None:
        self.progress.console.print(text, highlight=False)


class Meter:
    """Accumulates losses and times since the last log entry.

    Args:
        step: the step after which it starts.
    """

    def __init__(self, step: int) -> None:
        self.first_step = step
        self.started = time.perf_counter()
        self.waited = 0.0  # seconds spent waiting for data
        self.sums: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(loss)) + loss

    def check(self, step: int) -> None:
        """Raise FloatingPointError if a loss up to this step is not finite. Waits for the GPU."""
        if not torch.stack([*self.sums.values()]).isfinite().all():
            first = self.first_step
            where = f"at step {first}" if first == step - 1 else f"within steps {first} to {step - 1}"
            raise FloatingPointError(f"the loss became {self.sums['total'].item()} {where}; nothing was saved since")


def peak_memory(device: torch.device) -> float:
    """The run's peak memory so far on its device, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the incomplete last line of a killed run
        return float("inf")
