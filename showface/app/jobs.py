"""One worker thread with a short queue: progress, cancellation, a time limit, and the warnings of each job."""

from __future__ import annotations

import ctypes
import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any

from showface.app.guard import Refusal, log_error

Progress = Callable[[str, float], None]
Work = Callable[[Progress], Any]

PACKAGE = Path(__file__).parents[1]
MAX_NOTES = 20
MAX_NOTE = 300  # characters


class JobStoppedError(Exception):
    """The job was stopped: its caller hung up, or the server ends."""


class QueueFullError(Exception):
    """All places in the queue are taken.

    Attributes:
        retry_after: a guess of the seconds until one is free.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class Job:
    """Work for the worker thread.

    Attributes:
        name: the caller's name for it, or None.
        state: "queued", "running" or "done".
        stage, fraction: how far it is.
        future: its result and its notes; or a `Refusal`, or a `JobStoppedError`.
    """

    def __init__(self, work: Work, name: str | None) -> None:
        self.work: Work | None = work
        self.name, self.state, self.stage, self.fraction = name, "queued", "waiting", 0.0
        self.future: Future[tuple[Any, list[str]]] = Future()
        self._stopped: Exception | None = None

    def progress(self, stage: str, fraction: float) -> None:
        """Note how far the work is. Raises what `stop` was given, which ends the work."""
        if self._stopped is not None:
            raise self._stopped
        self.stage, self.fraction = stage, min(max(float(fraction), 0.0), 1.0)

    def stop(self, error: Exception) -> None:
        """End the job with this error: its caller gets it now, and the work ends at its next call of `progress`."""
        self._stopped = error
        self.finish(error)

    def finish(self, result: tuple[Any, list[str]] | Exception) -> None:
        """Give the caller the result or the error, unless the caller has one already."""
        with suppress(InvalidStateError):
            if isinstance(result, Exception):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)


class Jobs:
    """Runs jobs one after the other.

    Args:
        waiting: jobs that may wait while one runs.
        seconds: time for which a job may run.
    """

    def __init__(self, waiting: int = 4, seconds: float = 120.0) -> None:
        self.waiting, self.seconds = waiting, seconds
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._durations: deque[float] = deque(maxlen=8)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="showface-jobs", daemon=True)
        self._thread.start()

    def submit(self, work: Work, name: str | None = None) -> Job:
        """Queue a job.

        Args:
            work: is called with `progress(stage, fraction)` in the worker thread. It may raise `Refusal`.
            name: for `status`.

        Raises:
            QueueFullError: too many jobs wait.
            ValueError: a job with this name waits or runs already.
            JobStoppedError: the worker was closed.
        """
        with self._changed:
            if self._closed:
                raise JobStoppedError
            self.check_room()
            if name is not None and self._find(name) is not None:
                raise ValueError(f"a job with the id {name} waits or runs already: give each job its own id")
            job = Job(work, name)
            self._queue.append(job)
            self._changed.notify_all()
            return job

    def check_room(self) -> None:
        """Raise QueueFullError if no job can be queued now."""
        with self._changed:
            # A job that the worker is about to take does not wait.
            places = self.waiting + (self._running is None)
            if len(self._queue) >= places:
                mean = sum(self._durations) / len(self._durations) if self._durations else 1.0
                raise QueueFullError(max(1, math.ceil(mean)))

    def status(self, name: str) -> dict[str, Any]:
        """How far a job is: its state, its place in the queue (0: it runs), its stage and fraction."""
        with self._changed:
            job = self._find(name)
            if job is None:
                return {"state": "unknown", "position": 0, "stage": "", "fraction": 0.0}
            position = self._queue.index(job) + 1 if job.state == "queued" else 0
            return {"state": job.state, "position": position, "stage": job.stage, "fraction": job.fraction}

    def stop(self, job: Job) -> None:
        """Take a job out of the queue, or stop it at its next call of `progress`. A finished job stays as it is."""
        with self._changed:
            with suppress(ValueError):
                self._queue.remove(job)
            job.stop(JobStoppedError())

    def close(self, seconds: float = 0.5) -> bool:
        """Stop all jobs, and wait for the thread. Returns whether it has ended."""
        with self._changed:
            self._closed = True
            for job in [*self._queue, *([self._running] if self._running else [])]:
                self.stop(job)
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _find(self, name: str) -> Job | None:
        jobs = [*self._queue, *([self._running] if self._running else [])]
        return next((job for job in jobs if job.name == name), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                self._running = job = self._queue.popleft()
                job.state = "running"
            began = time.monotonic()
            late = Refusal(504, f"the work was stopped after {self.seconds:g} seconds, the limit here")
            timer = threading.Timer(self.seconds, job.stop, [late])
            timer.daemon = True
            timer.start()
            try:
                job.finish(_result(job))
            finally:
                timer.cancel()
                job.work = None  # it holds the photo
                _give_back_memory()
                with self._changed:
                    self._running = None
                    self._durations.append(time.monotonic() - began)
                job.state = "done"
                del job, late, timer


def _result(job: Job) -> tuple[Any, list[str]] | Exception:
    """Do the work. Errors lose their traceback, whose frames hold the photo."""
    assert job.work is not None
    try:
        # Filters are global, but only this thread warns of photos.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = job.work(job.progress)
        return result, _notes(caught)
    except (Refusal, JobStoppedError) as error:
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
    except Exception as error:
        log_error(error, "a job")
        return Refusal(500, "showface failed at this photo: its log says where")


def _give_back_memory() -> None:
    """Return freed memory to the system. After a large photo, glibc would keep a gigabyte."""
    with suppress(OSError, AttributeError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """What showface warned of, each once. Warnings of other packages are for developers, and may name paths."""
    own = [str(each.message) for each in caught if PACKAGE in Path(each.filename).parents]
    return [note[:MAX_NOTE] for note in dict.fromkeys(own)][:MAX_NOTES]
