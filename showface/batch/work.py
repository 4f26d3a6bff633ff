"""What folders and tar files of photos share: equal shares of them, and filling a few photos at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from showface.data import Photo
from showface.out_of_memory import memory_errors

# What one bad photo can raise, under `memory_errors`. Other photos may be good, so the work goes on.
FAILURES = (OSError, ValueError, FloatingPointError, MemoryError)

Item = TypeVar("Item")
Name = TypeVar("Name", bound=Hashable)


class Filled(Protocol):
    """A filled photo; `showface.inference.Restoration` is one."""

    @property
    def image(self) -> Image.Image: ...

    @property
    def faces(self) -> int: ...


Fill = Callable[[Sequence[tuple[Image.Image, NDArray[np.bool_]]]], Sequence[Filled]]


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of photos or tar files, for as many processes or machines. The first is 1 of N.

    Every file is in exactly one shard. Which one depends on the names of all files alone, so a shard stays the same
    when it is started again.

    Raises:
        ValueError: `index` is not in 1..`count`.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"a shard must be I/N with 1 <= I <= N, such as 1/4, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a shard like "2/4". Raises ValueError for other text."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(f"a shard must be I/N with 1 <= I <= N, such as 1/4, got {text}")
        return cls(int(index), int(count))

    def __call__(self, files: Sequence[Item]) -> Sequence[Item]:
        """The files of this shard: every N-th of all, since large ones often have neighbouring names."""
        return files[self.index - 1 :: self.count]


def fill_together(
    fill: Fill, photos: dict[Name, tuple[Photo, NDArray[np.bool_]]]
) -> dict[Name, Filled | BaseException | None]:
    """Fill photos in one call. If it fails, fill them one by one, so that one bad photo does not spoil the others.

    Returns what became of each: filled, an error, or None for an empty hole.
    """
    results: dict[Name, Filled | BaseException | None] = dict.fromkeys(photos)
    work = {name: (photo.rgb, hole) for name, (photo, hole) in photos.items() if hole.any()}
    groups = [list(work)] if work else []
    while groups:
        names = groups.pop()
        try:
            with warnings.catch_warnings(), memory_errors():
                warnings.filterwarnings("ignore", message="no face was found")  # the caller names these photos
                results.update(zip(names, fill([work[name] for name in names]), strict=True))
        except FAILURES as error:
            if len(names) == 1:
                results[names[0]] = error
            else:
                groups += [[name] for name in names]
    return results
