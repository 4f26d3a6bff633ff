"""One process per run folder: a lock that the kernel releases when the process ends, however it ends."""

import fcntl
import os
import socket
import warnings
from pathlib import Path
from weakref import WeakValueDictionary

LOCK_FILE = ".lock"


class FolderLock:
    """A lock on the folder of a run. `lock_folder` makes it; it is released when nothing refers to it any more.

    The file of the lock is deleted with it. A killed process leaves the file behind, unlocked.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / LOCK_FILE
        self.owner = os.getpid()
        self.handle = -1
        while self.handle < 0:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise BlockingIOError(
                    f"{folder} is in use by {other}, which trains there: wait for it or end it"
                ) from None
            except OSError as error:
                warnings.warn(f"{folder} can't be locked ({error}): start no second training there", stacklevel=4)
            # The other process may have deleted the file between the two calls: then this is a lock on nothing.
            if _is_at(handle, self.path):
                self.handle = handle
            else:
                os.close(handle)
        try:
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:
            pass  # on a full disk only the name of the process is missing

    def __del__(self) -> None:
        if self.handle >= 0 and self.owner == os.getpid():
            self.path.unlink(missing_ok=True)
            self.forget()

    def forget(self) -> None:
        """Close the file. In a forked child this keeps the lock of its parent, and the child can't outlive the lock."""
        os.close(self.handle)
        self.handle = -1


_held: WeakValueDictionary[Path, FolderLock] = WeakValueDictionary()


def lock_folder(folder: Path) -> FolderLock:
    """Lock a folder against other processes. All callers in one process share one lock.

    Raises:
        BlockingIOError: another process holds the lock; the message names it.
        OSError: the folder is not there or can't be written.
    """
    key = folder.resolve()
    lock = _held.get(key)
    if lock is None:
        lock = _held[key] = FolderLock(folder)
    return lock


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _forget_all() -> None:
    for lock in list(_held.values()):
        lock.forget()
    _held.clear()


# Data workers are forked. If they kept the file open, the lock would outlive a killed trainer.
os.register_at_fork(after_in_child=_forget_all)
