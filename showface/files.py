"""Files that are whole or not there, and what to do about those that are not."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: `path` is never half-written.

    The temporary name keeps the ending of `path`, since writers choose their format by it.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files that only their owner can read; results are ordinary files.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or the new name could outlive a power cut, and what it names not
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; makes the folder if need be."""
    path = Path(path)
    data = text.encode()  # what can't be encoded fails before anything is touched
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def existing_file(path: str | Path, what: str, where: str) -> Path:
    """The path, if a file is there.

    Args:
        what: needs the file, for the message: "LPIPS needs AlexNet's weights".
        where: to get it.

    Raises:
        FileNotFoundError: no such file, or the path is empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what}, and there is no file {str(path) or 'given'}: get it from {where}")
    return Path(path)
