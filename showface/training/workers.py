"""The processes that load the training data: how they end, and their errors in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.file_proxy import FileProxy
from torch.utils.data import DataLoader

from showface.training.signals import ignore_first_signal


def start_worker(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: the worker outlives a first signal, and its warnings can't block it.

    While the progress bar is shown, stdout and stderr go through its console. Another thread may have held the lock of
    the console when the worker was forked: the worker would wait for it for ever.
    """
    ignore_first_signal(worker)
    if isinstance(sys.stdout, FileProxy):
        sys.stdout = sys.stdout.rich_proxied_file
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = sys.stderr.rich_proxied_file


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the loader's batches. All workers have ended when the generator is exhausted, closed or has failed.

    Without this, a traceback keeps the loader's iterator alive after an error. At exit, Python sends each worker one
    SIGTERM, which `ignore_first_signal` ignores, and waits for it without a limit.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        if loader.num_workers:
            # DataLoader has no public method for this; deleting the iterator is not certain to call it.
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            for worker in iterator._workers:  # type: ignore[attr-defined]
                if worker.is_alive():  # it is stopped, or waits for a disk
                    worker.kill()
                    worker.join()


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn the errors of workers into an OSError of one line.

    An error that a worker raised has the worker's traceback in its text. The end of a worker by a signal is a
    RuntimeError.
    """
    try:
        yield
    except Exception as error:
        text = str(error).strip()
        # A connection breaks if the worker is killed while it hands over a batch.
        if text.startswith("DataLoader worker") or isinstance(error, ConnectionError | EOFError):
            what = text.splitlines()[0].rstrip(". ") if text else "a worker ended"
            hint = "a worker that is killed often lacks memory: try fewer data.workers"
            raise OSError(f"the data can't be loaded: {what} ({hint}); go on with --resume") from error
        if text.startswith("Caught ") and " in DataLoader worker process " in text.splitlines()[0]:
            kind, _, reason = text.splitlines()[-1].partition(": ")
            raise OSError(reason or kind) from error
        raise
