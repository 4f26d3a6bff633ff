"""Stop a run at the end of a step when a signal arrives."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The signal that requested a stop; None if no signal has arrived."""

    by: signal.Signals | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Record the first Ctrl-C or SIGTERM as a request; later signals keep their usual effect.

    Only works in the main thread.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def record(number: int, frame: FrameType | None) -> None:
        request.by = signal.Signals(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, record)
    try:
        yield request
    finally:
        restore()


def ignore_first_signal(worker: int) -> None:
    """Workers ignore the first signal: the current step needs their data.

    For `DataLoader(worker_init_fn=...)`. A terminal sends Ctrl-C to the workers too. A second signal ends a worker.
    """
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))
