"""Tar files by WebDataset's convention: members with the same path up to the file name's first dot are a sample."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from showface.data.find import IMAGE_SUFFIXES
from showface.data.urls import NamedBytes, open_url, url_name

MASK = "mask"
"""`key.mask.png`, or with another of `IMAGE_SUFFIXES`, is the mask of the image `key.jpg`."""
IMAGES = ", ".join(sorted(IMAGE_SUFFIXES))

Key = tuple[str, str]
"""What the members of a sample have in common: the folder, and the file name up to its first dot."""


class BrokenTarError(OSError):
    """A tar file is cut off or broken."""


def split_name(name: str) -> tuple[Key | None, str]:
    """The key of a member, and its extension in lower case, such as "parsing.png". Hidden files have no key."""
    folder, _, file_name = name.rpartition("/")
    stem, _, extension = file_name.partition(".")
    return (folder, stem) if stem else None, extension.lower()


@contextmanager
def open_tar(url: str) -> Iterator[tuple[tarfile.TarFile, BinaryIO]]:
    """Open an uncompressed tar file, and the file or URL in which it is. An error in the body is one of reading it.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not an uncompressed tar file.
        OSError: it can't be read.
        ModuleNotFoundError: a URL is given, and fsspec is not installed.
    """
    try:
        with open_url(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield tar, file
    except ImportError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"tar file does not exist: {url}") from error
    except tarfile.ReadError as error:
        hint = "a compressed one must be decompressed first"
        raise ValueError(f"{url} is not an uncompressed tar file ({error}); {hint}") from error
    except Exception as error:  # fsspec's file systems raise errors of many types
        raise OSError(f"cannot read tar file {url}: {error}") from error


def list_members(tar: tarfile.TarFile, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The complete members of a tar file that was opened from `file`, in order.

    Raises:
        BrokenTarError: it is cut off or broken after these members.
    """
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(position)
    try:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep the headers of all members
            if info.isreg() and info.offset_data + info.size > length:
                break
            yield info
        # tarfile stops silently at a bad header. A complete file ends with a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
            return
    except tarfile.ReadError:
        pass
    raise BrokenTarError("it is cut off or broken")


@dataclass
class Sample:
    """The members of a sample, with what stands between them.

    Attributes:
        tar: the file name of the tar file.
        key: what the sample's members have in common; None if no member belongs to a sample.
        members: the headers and the contents, in order. Contents are empty for links, folders and so on.
        image: the index of the image in `members`; None if there is none.
    """

    tar: str
    key: Key | None = None
    members: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)
    image: int | None = None

    def name(self, index: int) -> str:
        """The name of a member in messages."""
        return f"{self.tar}:{self.members[index][0].name}"

    def open(self, index: int) -> BinaryIO:
        """A member as a file, for `read_photo` and the like."""
        return NamedBytes(self.members[index][1], self.name(index))

    def mask(self) -> BinaryIO:
        """The mask among the members.

        Raises:
            FileNotFoundError: there is none.
            ValueError: there are several.
        """
        found = [index for index in range(len(self.members)) if self._extension(index) in _MASKS]
        wanted = f"{'/'.join(filter(None, self.key or ()))}.{MASK}.*"
        if not found:
            raise FileNotFoundError(f"there is no mask {wanted} in the tar file")
        if len(found) > 1:
            raise ValueError(f"there are several masks {wanted} in the tar file")
        return self.open(found[0])

    def others(self) -> list[tuple[tarfile.TarInfo, bytes]]:
        """What stands between the sample's members and does not belong to it."""
        return [member for index, member in enumerate(self.members) if self._extension(index) is None]

    def _extension(self, index: int) -> str | None:
        """The extension of a member, if it is a file of this sample."""
        info = self.members[index][0]
        key, extension = split_name(info.name)
        return extension if info.isreg() and key is not None and key == self.key else None


_SUFFIXES = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES}
_MASKS = {f"{MASK}.{suffix}" for suffix in _SUFFIXES}


def read_samples(url: str) -> Iterator[tuple[Sample, float]]:
    """The samples of a tar file, one after the other, each with the share of the file up to its end, 0 to 1.

    Every member is in one of them. The first image of a sample counts, as in `FaceShards`.

    Args:
        url: a path, or a URL that fsspec can open.

    Raises:
        ValueError: the members of a sample do not follow one another; or it is not an uncompressed tar file.
        OSError: it is cut off or broken, or can't be read.
        FileNotFoundError, ModuleNotFoundError: as for `open_tar`.
    """
    sample, seen = Sample(url_name(url)), set[Key]()
    with open_tar(url) as (tar, file):
        length = max(1, file.seek(0, os.SEEK_END))
        file.seek(0)
        for info in list_members(tar, file):
            key, extension = split_name(info.name)
            if info.isreg() and key is not None and key != sample.key:
                if sample.key is not None:
                    yield sample, info.offset / length
                    sample = Sample(sample.tar)
                if key in seen:
                    break
                seen.add(key)
                sample.key = key
            if info.isreg() and key is not None and extension in _SUFFIXES and sample.image is None:
                sample.image = len(sample.members)
            sample.members.append((info, cast(BinaryIO, tar.extractfile(info)).read() if info.isreg() else b""))
        else:
            yield sample, 1.0
            return
    raise ValueError(f"in {url} the members of a sample must follow one another, and those of {info.name} do not")


def add_member(tar: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
    """Write a member with the name, the date and the rights of another, but with these contents."""
    if info.isreg():
        copy = tarfile.TarInfo(info.name)  # a new one, whose header says nothing of the size before
        copy.mtime, copy.mode, copy.size = info.mtime, info.mode, len(data)
        tar.addfile(copy, NamedBytes(data, info.name))
    else:
        tar.addfile(info)
    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep the headers of all members
