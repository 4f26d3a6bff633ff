"""Files named by paths, patterns and URLs, and ranges of their bytes."""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

Urls = Path | str | Sequence[Path | str]

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
# A read that fails is tried again after so many seconds: networks and their file systems have hiccups.
_PAUSES = (1.0, 5.0)


def expand_urls(urls: Urls) -> list[str]:
    """The files that paths, URLs and patterns name, in their order, each once.

    Args:
        urls: one or more; `{000..012}` stands for the numbers of a range, as wide as its first one, `{a,b}` for
            alternatives, and `*`, `?`, `[...]` and `**` match local files, which are sorted.

    Raises:
        FileNotFoundError: nothing matches a pattern of local files.
        ValueError: nothing is named.
    """
    listed = [urls] if isinstance(urls, str | os.PathLike) else urls
    found: dict[str, None] = {}
    for url in itertools.chain.from_iterable(_expand_braces(os.fspath(url)) for url in listed):
        matches = [url]
        if glob.has_magic(url) and not _is_remote(url) and not os.path.exists(url):
            matches = sorted(glob.glob(url, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file matches {url}")
        found.update(dict.fromkeys(matches))
    if not found:
        raise ValueError(f"need at least one path, pattern or URL, got {urls!r}")
    return list(found)


def open_url(url: str) -> BinaryIO:
    """A local file or one that fsspec opens, to read bytes at any place.

    Raises:
        ModuleNotFoundError: a URL, and fsspec is not installed.
        OSError: a local file can't be opened. fsspec's file systems have errors of their own.
    """
    if not _is_remote(url):
        return open(url, "rb")
    files, path = _filesystem(url)
    return cast(BinaryIO, files.open(path, "rb"))


def read_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; nothing is left open. A failing read is tried again after a while.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the bytes can't be read, or are not all there.
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
        except Exception as error:  # each of fsspec's file systems has its own
            pause = next(pauses, None)
            if pause is None:
                raise OSError(f"cannot read {url}: {error or type(error).__name__}") from error
            time.sleep(pause)


def _read_range(url: str, offset: int, size: int) -> bytes:
    if _is_remote(url):
        files, path = _filesystem(url)
        return cast(bytes, files.cat_file(path, start=offset, end=offset + size))
    with open(url, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _is_remote(url: str) -> bool:
    return "://" in url or "::" in url


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, of which fsspec keeps one per process, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{url} needs fsspec: install 'showface[shards]'") from error
    return cast(tuple[Any, str], url_to_fs(url))


def _expand_braces(url: str) -> list[str]:
    match = _BRACES.search(url)
    if match is None:
        return [url]
    first, last, names = match.groups()
    options = names.split(",") if names else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [rest for option in options for rest in _expand_braces(url[: match.start()] + option + url[match.end() :])]
