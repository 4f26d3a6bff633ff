"""The training set: faces from any source with random holes and, where there are any, region labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from showface.data.augmentation import FaceAugmentation, read_labels
from showface.data.images import DECODE_ERRORS, UnreadableImageError, read_image, source_name


class FaceSource(Protocol):
    """Where a `FaceDataset` takes its faces from. It is pickled, and used in several processes at once."""

    @property
    def labelled(self) -> int:
        """Number of faces that have labels."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message calls the face."""

    def open_image(self, index: int) -> Path | BinaryIO:
        """An image file; what is open has its name as `name`.

        Raises:
            LostFacesError: the face is gone, and others with it.
            OSError: the face is gone.
        """

    def open_labels(self, index: int) -> Path | BinaryIO | None:
        """A file for `read_labels`, or None; raises like `open_image`."""


class LostFacesError(OSError):
    """Part of a source is gone: the faces `first .. first + count - 1`."""

    def __init__(self, message: str, first: int, count: int) -> None:
        super().__init__(message)
        self.first, self.count = first, count


class FaceDataset(Dataset[dict[str, torch.Tensor]]):
    """Faces from a source, each item with a fresh random hole.

    An item is a dict of
        `image`: float32 `(3, size, size)` in [-1, 1];
        `hole`: float32 `(1, size, size)` of 0 and 1, 1 = corrupted;
        `parsing`: int64 `(size, size)`, 0..18 in the order of `REGIONS`, -1 where there is no label.

    Item `i >= len(dataset)` is item `i % len` of a later epoch. It depends on the seed, the epoch and the
    index only, so it is the same in any worker and after a restart. A face that turns out broken is reported
    once and its place is taken by the next good one; where part of the source is gone, each of its faces is
    replaced by another one of those behind it.
    """

    def __init__(
        self, source: FaceSource, augmentation: FaceAugmentation, seed: int = 0, *, unreadable: int = 0
    ) -> None:
        """
        Args:
            source: at least one face.
            augmentation: makes the items.
            seed: any integer from 0 upwards.
            unreadable: number of faces that were left out of the source because they can't be read.

        Raises:
            ValueError: an empty source or a negative seed.
        """
        if not len(source) or seed < 0:
            raise ValueError(f"need at least one face and seed >= 0; got {len(source)} faces, seed {seed}")
        self.source, self.augmentation, self.seed, self.epoch = source, augmentation, seed, 0
        self._left_out = unreadable
        # In shared memory, so that what a worker process finds broken is known to all. `_skip` is 0 for a good
        # face, otherwise the way to the one that may take its place.
        self._skip = _shared(len(source), torch.int32)
        self._bad_labels = _shared(len(source), torch.bool)

    @property
    def unreadable(self) -> int:
        """Number of faces found unreadable so far, at the start or while reading, in any worker."""
        return self._left_out + int(self._skip.count_nonzero())

    @property
    def labelled(self) -> int:
        """Number of faces that have labels."""
        return self.source.labelled

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that items `0 .. len - 1` belong to; not needed with `EpochSampler`.

        Raises:
            ValueError: a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Without this a plain loop would never end, since no index is too large.
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < 0:
            raise IndexError(f"index must not be negative, got {index}")
        ahead, index = divmod(int(index), len(self))
        rng = np.random.default_rng((self.seed, self.epoch + ahead, index))
        image, index = self._read_from(index)
        return self.augmentation(image, self._read_labels(index, image.size), rng)

    def _read_from(self, index: int) -> tuple[Image.Image, int]:
        """The first readable image from `index` on, around the end, and its index."""
        while True:
            if not self._skip[index]:
                try:
                    return read_image(self.source.open_image(index)), index
                except LostFacesError as error:
                    # Were it the next good face for all of them, that one would be seen far too often.
                    self._skip[error.first : error.first + error.count] = error.count
                    warnings.warn(f"{error}; other images take the place of its {error.count}", stacklevel=3)
                except OSError as error:
                    self._skip[index] = 1
                    warnings.warn(f"{error}; another image takes its place", stacklevel=3)
            if self._skip.all():
                names = [self.source.name(index) for index in range(len(self))]
                raise UnreadableImageError(f"all {len(self)} images are unreadable: {_some(names)}")
            index = (index + int(self._skip[index])) % len(self)

    def _read_labels(self, index: int, image_size: tuple[int, int]) -> Image.Image | None:
        if self._bad_labels[index]:
            return None
        name = f"those of {self.source.name(index)}"
        try:
            file = self.source.open_labels(index)
            if file is None:
                return None
            name = source_name(file)
            return read_labels(file, image_size)
        except DECODE_ERRORS as error:
            self._bad_labels[index] = True
            warnings.warn(f"labels left out, cannot use {name}: {error}", stacklevel=3)
            return None


class Selection(NamedTuple):
    """The faces that `select_faces` keeps, and how many it left out."""

    indices: list[int]
    unreadable: int
    too_small: int


def select_faces(names: Sequence[str], sides: Iterable[int | None], min_side: int) -> Selection:
    """Leaves out, with a warning in the name of the caller's caller, what is unreadable, and what is too small.

    Args:
        names: of the faces, for messages.
        sides: the shorter side of each in pixels; None for an unreadable one.
        min_side: the smallest side that is kept.

    Raises:
        ValueError: `min_side` is negative, or no image is left.
        UnreadableImageError: every image is unreadable.
    """
    if min_side < 0:
        raise ValueError(f"need min_side >= 0, got {min_side}")
    indices: list[int] = []
    broken: list[str] = []
    for index, side in enumerate(sides):
        if side is None:
            broken.append(names[index])
        elif side >= min_side:
            indices.append(index)
    if len(broken) == len(names):
        raise UnreadableImageError(f"all {len(names)} images are unreadable: {_some(broken)}")
    if broken:
        warnings.warn(f"left out {len(broken)} unreadable images: {_some(broken)}", stacklevel=3)
    too_small = len(names) - len(broken) - len(indices)
    if not indices:
        raise ValueError(f"no image left: {too_small} have a shorter side below {min_side} pixels")
    return Selection(indices, len(broken), too_small)


def shorter_side(file: Path | BinaryIO) -> int | None:
    """From the header alone; None where there is no readable one."""
    try:
        with Image.open(file) as image:
            return min(int(image.width), int(image.height))
    except DECODE_ERRORS:
        return None


def _shared(length: int, dtype: torch.dtype) -> torch.Tensor:
    flags = torch.zeros(length, dtype=dtype)
    flags.untyped_storage().share_memory_()
    return flags


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 5
    return ", ".join(names[:5]) + (f" and {rest} more" if rest > 0 else "")
