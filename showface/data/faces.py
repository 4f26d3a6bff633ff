"""The training set: faces from any source, with random holes and optional region labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from showface.data.augmentation import Augmentation
from showface.data.images import UnreadableImageError, open_image, read_image, source_name
from showface.data.regions import read_labels


class FaceSource(Protocol):
    """A source of image and label files. It must be picklable, since several processes use it at once."""

    @property
    def labelled(self) -> int:
        """Number of faces that have labels."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The face's name in messages."""

    def open_image(self, index: int) -> Path | BinaryIO:
        """The path of the image, or an open file whose `name` is set.

        Raises:
            LostFacesError: this face and others can't be read any more.
            OSError: this face can't be read any more.
        """

    def open_labels(self, index: int) -> Path | BinaryIO | None:
        """Like `open_image`, for the label image. Returns None for a face without labels."""


class LostFacesError(OSError):
    """Part of a source can't be read any more: the faces `first .. first + count - 1`."""

    def __init__(self, message: str, first: int, count: int) -> None:
        super().__init__(message)
        self.first, self.count = first, count


class FaceDataset(Dataset[dict[str, torch.Tensor]]):
    """Faces from a source, each sample with a new random hole.

    A sample is a dict of
        `image`: float32 `(3, size, size)` in [-1, 1];
        `hole`: float32 `(1, size, size)` of 0 and 1, 1 = corrupted;
        `parsing`: int64 `(size, size)`, 0..18 in the order of `REGIONS`, -1 where there is no label.

    Sample `i >= len(dataset)` is sample `i % len` of a later epoch, as `EpochSampler` asks for it. It depends only on
    the seed, the epoch and the index, so it is the same in any worker and after a restart. A broken face is reported
    once and replaced by the next readable face. If part of the source is lost, each lost face is replaced by a
    different face that follows that part.
    """

    def __init__(self, source: FaceSource, augmentation: Augmentation, seed: int = 0, *, unreadable: int = 0) -> None:
        """
        Args:
            source: at least one face.
            augmentation: makes a sample from a face.
            seed: an integer >= 0.
            unreadable: number of unreadable faces already left out of the source.

        Raises:
            ValueError: an empty source or a negative seed.
        """
        if not len(source) or seed < 0:
            raise ValueError(f"need at least one face and seed >= 0; got {len(source)} faces, seed {seed}")
        self.source, self.augmentation, self.seed = source, augmentation, seed
        self._left_out = unreadable
        # In shared memory, so that all worker processes know which faces are broken. In `_skip`, 0: the face is
        # readable. n: use the face n places further on instead.
        self._skip = _shared(len(source), torch.int32)
        self._bad_labels = _shared(len(source), torch.bool)

    @property
    def unreadable(self) -> int:
        """Number of faces found unreadable so far, at the start or later, by any worker."""
        return self._left_out + int(self._skip.count_nonzero())

    @property
    def labelled(self) -> int:
        """Number of faces that have labels."""
        return self.source.labelled

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Without this method, iteration would never end, because `__getitem__` accepts every index from 0 upwards.
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < 0:
            raise IndexError(f"index must not be negative, got {index}")
        epoch, index = divmod(int(index), len(self))
        rng = np.random.default_rng((self.seed, epoch, index))
        image, index = self._read_from(index)
        return self.augmentation(image, self._read_labels(index, image.size), rng)

    def _read_from(self, index: int) -> tuple[Image.Image, int]:
        """The first readable image from `index` on, wrapping around at the end, and its index."""
        while True:
            if not self._skip[index]:
                try:
                    return read_image(self.source.open_image(index)), index
                except LostFacesError as error:
                    # Replace each lost face by a different face. A single replacement would be seen far too often.
                    self._skip[error.first : error.first + error.count] = error.count
                    warnings.warn(f"{error}; other images replace its {error.count}", stacklevel=3)
                except OSError as error:
                    self._skip[index] = 1
                    warnings.warn(f"{error}; another image replaces it", stacklevel=3)
            if self._skip.all():
                names = [self.source.name(index) for index in range(len(self))]
                raise UnreadableImageError(f"all {len(self)} images are unreadable: {_some(names)}")
            index = (index + int(self._skip[index])) % len(self)

    def _read_labels(self, index: int, image_size: tuple[int, int]) -> Image.Image | None:
        if self._bad_labels[index]:
            return None
        name = f"the labels of {self.source.name(index)}"
        try:
            file = self.source.open_labels(index)
            if file is None:
                return None
            name = source_name(file)
            return read_labels(file, image_size)
        except (OSError, ValueError) as error:
            self._bad_labels[index] = True
            warnings.warn(f"labels left out, cannot use {name}: {error}", stacklevel=3)
            return None


class Selection(NamedTuple):
    """The faces kept by `select_faces`, and how many it left out."""

    indices: list[int]
    unreadable: int
    too_small: int


def select_faces(names: Sequence[str], sides: Iterable[int | None], min_side: int) -> Selection:
    """Leave out unreadable and small faces, and warn about unreadable ones.

    The warning shows the line that created the dataset.

    Args:
        names: the faces' names, for messages.
        sides: the shorter side of each face in pixels; None for an unreadable one.
        min_side: the smallest side to keep.

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
    """The shorter side of an image in pixels, read from its header; None if the header is unreadable."""
    try:
        with open_image(file) as image:
            return min(int(image.width), int(image.height))
    except OSError:
        return None


def _shared(length: int, dtype: torch.dtype) -> torch.Tensor:
    flags = torch.zeros(length, dtype=dtype)
    flags.untyped_storage().share_memory_()
    return flags


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 5
    return ", ".join(names[:5]) + (f" and {rest} more" if rest > 0 else "")
