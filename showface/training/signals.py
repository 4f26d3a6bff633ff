"""Stop a run at the end of a step when a signal arrives."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers send SIGTERM, or SIGUSR1 if they are told so; a closed terminal sends SIGHUP. Windows lacks the last two.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class StopRequest:
    """The signal that requested a stop; None if no signal has arrived."""

    by: signal.Signals | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Record a signal of SIGNALS as a request. A second Ctrl-C then stops at once; other signals change nothing more.

    A scheduler may signal each process, and the launcher once more, so the second SIGTERM must not lose the step. What
    was ignored before, such as SIGHUP by nohup, stays ignored. Only works in the main thread.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def record(number: int, frame: FrameType | None) -> None:
        request.by = request.by or signal.Signals(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, record)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_first_signal(worker: int) -> None:
    """Workers ignore the first signal: the current step needs their data.

    For `DataLoader(worker_init_fn=...)`. A terminal sends Ctrl-C to the workers too. A second signal ends a worker.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))
