"""Atomic writes, checks before files are read or written, and paths in the home folder."""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename the file, so `path` is never half-written.

    The temporary path has the suffix of `path`, because many writers choose their format by it. A new file gets the
    usual mode, which the umask limits; an existing file keeps its mode. If `path` is a link, the file that it points to
    is written. A device or a pipe, such as /dev/null, is written directly, since it can't be replaced.

    Raises:
        OSError: the file can't be written. `path` stays as it was.
    """
    path = _target(Path(path))
    try:
        existing = path.stat()
    except FileNotFoundError:
        existing = None
    if existing is not None and not stat.S_ISREG(existing.st_mode):
        if stat.S_ISDIR(existing.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        write(path)
        return
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(handle).st_mode if existing is None else existing.st_mode
        os.close(handle)
        write(temporary)
        # Some writers, such as safetensors, put a new file of mode 0600 in its place.
        temporary.chmod(stat.S_IMODE(mode))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut could keep the new name but lose the contents
        temporary.replace(path)
    except OSError as error:
        # The error of a full disk names no file, and the temporary name means nothing to a user.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporaries(folder: Path, name: str) -> None:
    """Delete the temporary files that a killed process left in a folder; there may be none.

    No other process may be writing these files.

    Args:
        name: a glob pattern for the names of the files that were to be written, such as `step-*.pt`.
    """
    pattern = Path(name)
    for left in folder.glob(f".{pattern.stem}-{'[0-9a-z_]' * 8}{pattern.suffix}"):
        left.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. Creates the folder if needed.

    A byte of a file name that is not UTF-8 is written as four characters, such as `\\xff`.

    Raises:
        UnicodeEncodeError: the text can't be encoded. `path` stays as it was.
    """
    data = printable(text).encode()  # before opening the file
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def printable(text: str) -> str:
    """Text with file names that can be written: a byte that is not UTF-8 becomes four characters, such as `\\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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


def is_one_of(path: Path, files: Iterable[str | Path]) -> bool:
    """Whether a path is one of several files, also through a link. Files that don't exist are none."""
    return path.exists() and any(Path(other).exists() and path.samefile(other) for other in files)


def refuse_overwrite(path: str | Path, inputs: Iterable[str | Path], overwrite: bool) -> None:
    """Refuse to write over a file that exists.

    Args:
        path: the file to write.
        inputs: the files that are read. The message says so if `path` is one of them, also through a link.
        overwrite: do not refuse.

    Raises:
        FileExistsError: the file exists, and `overwrite` is False; or it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: give -o the name of a file")
    if overwrite or not path.exists():
        return
    what = "is one of the inputs" if is_one_of(path, inputs) else "exists already"
    raise FileExistsError(f"{path} {what}: give -o another name, or --overwrite")


def _target(path: Path) -> Path:
    """The path, or where it points to if it is a link. Raises OSError for a loop of links."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _sync_folder(folder: Path) -> None:
    """Flush the new name of a file to the disk. Some file systems can't."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
