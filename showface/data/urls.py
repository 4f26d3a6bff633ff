"""Files given by paths, patterns and URLs, and reading parts of them."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

Urls = Path | str | Sequence[Path | str]

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
# Seconds to wait before a failed read is tried again: errors of a network are often temporary.
_PAUSES = (1.0, 5.0)
# A typing error in a range of numbers must not fill the memory.
_MAX_FILES, _MAX_BRACES = 100_000, 20


def expand_urls(urls: Urls) -> list[str]:
    """List the files given by paths, URLs and patterns, in order, each once.

    Args:
        urls: one or more. `{000..012}` stands for a range of numbers, padded to the width of the first, and `{a,b}` for
            alternatives. `*`, `?`, `[...]` and `**` match local files, which are sorted.

    Raises:
        FileNotFoundError: no local file matches a pattern.
        ValueError: no path or URL is given, or a pattern stands for more than 100,000 files.
    """
    listed = [urls] if isinstance(urls, str | os.PathLike) else urls
    found: dict[str, None] = {}
    for url in itertools.chain.from_iterable(_expand_pattern(os.fspath(url)) for url in listed):
        matches = [url]
        if glob.has_magic(url) and not is_remote(url) and not os.path.exists(url):
            matches = sorted(glob.glob(url, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file matches {url}")
        found.update(dict.fromkeys(matches))
    if not found:
        raise ValueError(f"need at least one path, pattern or URL, got {urls!r}")
    return list(found)


def is_pattern(url: str) -> bool:
    """Whether `expand_urls` may make several files of this, or it is a URL. A file of this name is neither."""
    return is_remote(url) or ((glob.has_magic(url) or bool(_BRACES.search(url))) and not os.path.exists(url))


def url_name(url: str) -> str:
    """The file name of a path or a URL, without the query of a URL or the protocols that are chained to it."""
    if is_remote(url):
        # Of a chain such as simplecache::s3://bucket/x.tar, the first part with a path names the file.
        path = next((part.partition("://")[2] for part in url.split("::") if "://" in part), "")
        url = re.split("[?#]", path)[0]
    return os.path.basename(url)


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a pipe, a device or a socket. Reading one may wait, or go on, for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_url(url: str) -> BinaryIO:
    """Open a local file, or a URL with fsspec, for reading bytes at any position.

    Raises:
        ModuleNotFoundError: a URL is given, and fsspec, or what it needs for such URLs, is not installed.
        OSError: a local file can't be opened, or is no regular file. fsspec's file systems may raise other errors.
    """
    if not is_remote(url):
        if is_special(url):
            raise OSError("it is no regular file")
        return open(url, "rb")
    files, path = _filesystem(url)
    return cast(BinaryIO, files.open(path, "rb"))


class NamedBytes(io.BytesIO):
    """Bytes as a file that has a name in messages."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name

    def __repr__(self) -> str:
        return repr(self.name)  # Pillow puts this into its error messages


def read_range(url: str, offset: int, size: int) -> bytes:
    """Read `size` bytes of a file, starting at `offset`, and close it. A failed read is tried again twice.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the bytes can't be read, or some are missing.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            data = _read_range(url, offset, size)
            if len(data) == size:
                return data
            raise OSError(f"{len(data)} bytes at {offset} instead of {size}")
        except FileNotFoundError:
            raise
        except Exception as error:  # fsspec's file systems raise errors of many types
            pause = next(pauses, None)
            if pause is None:
                raise OSError(f"cannot read {url}: {error or type(error).__name__}") from error
            time.sleep(pause)


def _read_range(url: str, offset: int, size: int) -> bytes:
    if is_remote(url):
        files, path = _filesystem(url)
        return cast(bytes, files.cat_file(path, start=offset, end=offset + size))
    with open(url, "rb") as file:
        file.seek(offset)
        return file.read(size)


def is_remote(url: str) -> bool:
    """Whether fsspec opens it."""
    return "://" in url or "::" in url


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. fsspec caches the file system per process."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{url} needs fsspec: install 'showface[shards]'") from error
    try:
        return cast(tuple[Any, str], url_to_fs(url))
    except ImportError as error:
        protocol = url.partition(":")[0]
        raise ModuleNotFoundError(f"{url} needs more of fsspec: install 'fsspec[{protocol}]' ({error})") from error


def _expand_pattern(url: str) -> list[str]:
    """The paths that the braces of a pattern stand for. Raises ValueError if they are too many."""
    if len(_BRACES.findall(url)) > _MAX_BRACES:
        raise ValueError(f"{url[:60]}... has more than {_MAX_BRACES} pairs of braces")
    found = list(itertools.islice(_expand_braces(url), _MAX_FILES + 1))
    if len(found) > _MAX_FILES:
        raise ValueError(f"{url} stands for more than {_MAX_FILES:,} files")
    return found


def _expand_braces(url: str) -> Iterator[str]:
    match = _BRACES.search(url)
    if match is None:
        yield url
        return
    first, last, names = match.groups()
    options = names.split(",") if names else (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    for option in options:
        yield from _expand_braces(url[: match.start()] + option + url[match.end() :])
