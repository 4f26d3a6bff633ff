"""The logger of a run: a progress bar, `log.jsonl` and TensorBoard's events."""

import io
import json
import math
import resource
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from showface.files import write_text
from showface.models import InpaintingNetwork

LOG_FILE = "log.jsonl"
LINE_EVERY = 60  # seconds from one printed line to the next, without a terminal
SHOWN_WAIT = 0.05  # share of the time spent waiting for data from which on it is shown


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
            lines = self.file.read_text(errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            if len(kept) < len(lines):
                write_text(self.file, "".join(f"{line}\n" for line in kept))
        self.events = _events(out / "events", purge_step=step + 1 if step else None)
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            expand=True,
        )
        self.shown = -math.inf  # when the last line was printed
        self.validation = ""  # the last score, as text
        self.task = self.progress.add_task("train", total=steps, completed=step, status="")

    def __enter__(self) -> "Logger":
        # A warning can name a file whose name is not UTF-8; while the bar is shown, warnings go to stdout.
        self.stdout = sys.stdout
        if isinstance(sys.stdout, io.TextIOWrapper):
            self.stdout_errors = sys.stdout.errors
            sys.stdout.reconfigure(errors="backslashreplace")
        self.excepthook, threading.excepthook = threading.excepthook, self._thread_failed
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if isinstance(self.stdout, io.TextIOWrapper):
            self.stdout.reconfigure(errors=self.stdout_errors)
        try:
            if self.events is not None:
                with _writing(self.events.log_dir):
                    self.events.close()
        except OSError:
            if error is None:  # otherwise it would hide the first error
                raise
        finally:
            threading.excepthook = self.excepthook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """Leave out the traceback of TensorBoard's thread if it can't write: `scalars` raises the same error."""
        if not isinstance(failure.exc_value, OSError):
            self.excepthook(failure)

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if self.events is not None:
            with _writing(self.events.log_dir):
                for name, value in values.items():
                    self.events.add_scalar(name, value, step)
        with _writing(self.file), self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        status = f"loss {values['total']:.4f}  {values['images_per_second']:.1f} images/s"
        if values["waiting"] > SHOWN_WAIT:
            status += f"  {values['waiting']:.0%} waiting for data"
        if "validation_hole" in values:
            self.validation = f"  validation {values['validation_hole']:.4f}"
        status += self.validation
        self.progress.update(self.task, completed=step, status=status)
        # Where there is no terminal the bar appears at the end only, so a batch job's file gets lines.
        if not self.progress.console.is_terminal and time.monotonic() - self.shown >= LINE_EVERY:
            self.shown = time.monotonic()
            self.message(f"step {step} of {self.progress.tasks[self.task].total:.0f}  {status}")

    def image(self, step: int, image: Tensor) -> None:
        if self.events is not None:
            with _writing(self.events.log_dir):
                self.events.add_image("samples", image, step)

    def message(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


@torch.no_grad()
def sample_grid(network: InpaintingNetwork, image: Tensor, hole: Tensor) -> Tensor:
    """A grid (3, B H, 4 W) in [0, 1], on the CPU; each row has an input, its coarse image, its result and its target.

    Args:
        network: in eval mode.
        image, hole: (B, 3, H, W) in [-1, 1] and (B, 1, H, W), 1 = corrupted.
    """
    output = network(image, hole)
    masked = torch.where(hole > 0.5, torch.ones_like(image), image)
    rows = torch.cat([masked, output.coarse, output.image, image], dim=3)
    return torch.cat(list(rows), dim=1).float().clamp(-1, 1).add(1).div(2).cpu()


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
        self.counts: Counter[str] = Counter()

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(loss)) + loss
        self.counts.update(losses.keys())

    def means(self) -> dict[str, Tensor]:
        """The mean of each loss over the steps that had it: a GAN's losses can begin between two entries."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def check(self, step: int) -> None:
        """Raise FloatingPointError if a loss up to this step is not finite. Waits for the GPU.

        The message says which losses, and the steps since the last entry within which it happened.
        """
        if torch.stack([*self.sums.values()]).isfinite().all():
            return
        first = self.first_step
        where = f"at step {first}" if first == step - 1 else f"within steps {first} to {step - 1}"
        bad = [name for name, total in self.sums.items() if name != "total" and not total.isfinite()]
        which = f"not finite: {', '.join(bad)}" if bad else "each loss is finite, but not their weighted sum"
        raise FloatingPointError(f"the loss became {self.sums['total'].item()} {where} ({which})")


def peak_memory(device: torch.device) -> float:
    """The run's peak memory so far on its device, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _events(folder: Path, purge_step: int | None) -> SummaryWriter | None:
    """The writer of TensorBoard's events, or None for a path that TensorBoard can't encode."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        warnings.warn(f"TensorBoard can't write to {folder}, whose name is not UTF-8: see {LOG_FILE}", stacklevel=3)
        return None
    with _writing(folder):
        return SummaryWriter(folder, purge_step=purge_step)


@contextmanager
def _writing(path: Path | str) -> Iterator[None]:
    """Name the file in an error, since that of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"can't write the log {path}: {error}") from error


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the incomplete last line of a killed run
        return float("inf")
