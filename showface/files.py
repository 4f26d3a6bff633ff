"""Atomic writes, a check for files that a user must provide, and paths in the home folder."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename the file, so `path` is never half-written.

    The temporary path has the suffix of `path`, because many writers choose their format by it.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp creates files that only their owner can read. Give the file its usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut could keep the new name but lose the contents
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. Creates the folder if needed."""
    path = Path(path)
    data = text.encode()  # before opening the file: this fails for text that can't be encoded
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def with_home(argument: str) -> str:
    """A command's argument with the home folder for a `~` that the shell left, because of quotes or of `--option=`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return option + equals + value


def existing_file(path: str | Path, what: str, where: str) -> Path:
    """Return the path if the file exists.

    Args:
        what: why the file is needed, for the message, such as "LPIPS needs AlexNet's weights".
        where: where to get the file, for the message.

    Raises:
        FileNotFoundError: the file does not exist, or the path is empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what}, and there is no file {str(path) or 'given'}: get it from {where}")
    return Path(path)
