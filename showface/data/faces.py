"""The training set: faces from folders with random holes and, where there are any, region labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset, Sampler

from showface.data.images import (
    DECODE_ERRORS,
    UnreadableImageError,
    find_images,
    image_to_tensor,
    mask_to_tensor,
    read_image,
    resize_box,
    square_crop,
)
from showface.data.masks import KINDS, random_hole

REGIONS: tuple[str, ...] = (
    "background",
    "skin",
    "nose",
    "eyeglasses",
    "left eye",
    "right eye",
    "left brow",
    "right brow",
    "left ear",
    "right ear",
    "mouth interior",
    "upper lip",
    "lower lip",
    "hair",
    "hat",
    "earring",
    "necklace",
    "neck",
    "cloth",
)

PARSING_SUFFIX = "_parsing"
NO_LABEL = -1

_MIRRORED = ((4, 5), (6, 7), (8, 9))
# Keeps the shuffling's random stream apart from the items': seeds (a, b) and (a, b, 0) give the same stream.
_SHUFFLE_KEY = 1

Folders = Path | str | Sequence[Path | str]


class FaceFolder(Dataset[dict[str, torch.Tensor]]):
    """Faces from folders, each item with a fresh random hole.

    An item is a dict of
        `image`: float32 `(3, size, size)` in [-1, 1];
        `hole`: float32 `(1, size, size)` of 0 and 1, 1 = corrupted;
        `parsing`: int64 `(size, size)`, 0..18 in the order of `REGIONS`, -1 where there is no label.

    Item `i >= len(dataset)` is item `i % len` of a later epoch. It depends on the seed, the epoch and the
    index only, so it is the same in any worker and after a restart. A file that turns out broken is reported
    once and its place is taken by the next good one.

    Attributes:
        paths: the image files, in order.
        labels: for each image its label file, or None.
        too_small: number of images left out because of `min_side`.
    """

    def __init__(
        self,
        folders: Folders,
        size: int = 256,
        *,
        parsing: Path | str | Sequence[Path | str | None] | None = None,
        min_side: int = 0,
        flip: bool = True,
        colour: float = 0.0,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        ratio: tuple[float, float] = (0.01, 0.6),
        kind: str = "both",
        seed: int = 0,
    ) -> None:
        """Looks the files up and reads every image's header.

        Args:
            folders: one or more folders, searched recursively.
            size: side of the items in pixels.
            parsing: label folders, one per entry of `folders` (None for a folder without labels): PNGs of
                values 0..18 under the image's relative name; other values mean no label. By default
                `<folder>_parsing` beside a given folder, or beside one below it, is taken for that folder's
                labels. Label folders are never searched for faces.
            min_side: images whose shorter side is below this are left out.
            flip: mirror half of the items; left and right labels are swapped with it.
            colour: strength of random brightness, contrast and saturation, in [0, 1); 0 is none.
            crop_scale: range of the random crop's side as a fraction of the shorter side, in (0, 1].
            ratio, kind: of the holes, see `random_hole`.
            seed: any integer from 0 upwards.

        Raises:
            FileNotFoundError, NotADirectoryError: a folder does not exist.
            ValueError: an option out of range, a folder without images, or no image left.
            UnreadableImageError: every image is unreadable.
        """
        low, high = crop_scale
        if size < 1 or min_side < 0 or seed < 0:
            raise ValueError(f"need size >= 1, min_side >= 0, seed >= 0; got {size}, {min_side}, {seed}")
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop_scale must satisfy 0 < low <= high <= 1, got {crop_scale}")
        if not 0.0 <= colour < 1.0:
            raise ValueError(f"colour must be in [0, 1), got {colour}")
        if not 0.0 <= ratio[0] <= ratio[1] <= 1.0 or kind not in KINDS:
            raise ValueError(f"need ratio 0 <= low <= high <= 1 and kind in {KINDS}; got {ratio}, {kind!r}")
        self.size, self.flip, self.colour, self.crop_scale = size, flip, colour, crop_scale
        self.ratio, self.kind, self.seed, self.epoch = ratio, kind, seed, 0
        pairs = _find_pairs(folders, parsing)
        self.paths: list[Path] = []
        self.labels: list[Path | None] = []
        self.too_small = 0
        broken: list[Path] = []
        for path, label in pairs:
            side = _shorter_side(path)
            if side is None:
                broken.append(path)
            elif side < min_side:
                self.too_small += 1
            else:
                self.paths.append(path)
                self.labels.append(label)
        self._broken_headers = len(broken)
        if len(broken) == len(pairs):
            raise UnreadableImageError(f"all {len(pairs)} images are unreadable: {_some(broken)}")
        if broken:
            warnings.warn(f"left out {len(broken)} unreadable images: {_some(broken)}", stacklevel=2)
        if not self.paths:
            raise ValueError(f"no image left: {self.too_small} have a shorter side below {min_side} pixels")
        # In shared memory, so that what a worker process finds broken is known to all.
        self._failed = _shared_flags(len(self.paths))
        self._bad_label = _shared_flags(len(self.paths))

    @property
    def unreadable(self) -> int:
        """Number of files found unreadable so far, at the start or while reading, in any worker."""
        return self._broken_headers + int(self._failed.sum())

    @property
    def labelled(self) -> int:
        """Number of images that have a label file."""
        return sum(label is not None for label in self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that items `0 .. len - 1` belong to; not needed with `EpochSampler`.

        Raises:
            ValueError: a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Without this a plain loop would never end, since no index is too large.
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < 0:
            raise IndexError(f"index must not be negative, got {index}")
        ahead, index = divmod(int(index), len(self))
        rng = np.random.default_rng((self.seed, self.epoch + ahead, index))
        image, index = self._read_from(index)
        scale = float(rng.uniform(*self.crop_scale))
        box = square_crop(image.width, image.height, scale, rng)
        mirrored = bool(rng.random() < 0.5) and self.flip
        regions = self._read_label(index, image.size, box, mirrored)
        image = resize_box(image, box, self.size)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colour:
            image = _vary_colour(image, self.colour, rng)
        hole = random_hole(self.size, self.size, rng, ratio=self.ratio, kind=self.kind)
        return {
            "image": image_to_tensor(image),
            "hole": mask_to_tensor(hole),
            "parsing": torch.from_numpy(regions),
        }

    def _read_from(self, index: int) -> tuple[Image.Image, int]:
        """The first readable image from `index` on, around the end, and its index."""
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if self._failed[candidate]:
                continue
            try:
                return read_image(self.paths[candidate]), candidate
            except OSError as error:
                self._failed[candidate] = True
                warnings.warn(f"{error}; another image takes its place", stacklevel=3)
        raise UnreadableImageError(f"all {len(self)} images are unreadable: {_some(self.paths)}")

    def _read_label(
        self, index: int, image_size: tuple[int, int], box: tuple[int, int, int, int], mirrored: bool
    ) -> NDArray[np.int64]:
        path = self.labels[index]
        if path is None or self._bad_label[index]:
            return np.full((self.size, self.size), NO_LABEL, dtype=np.int64)
        try:
            values = _crop_label(path, image_size, box, self.size)
        except DECODE_ERRORS as error:
            self._bad_label[index] = True
            warnings.warn(f"labels left out, cannot use {path}: {error}", stacklevel=3)
            return np.full((self.size, self.size), NO_LABEL, dtype=np.int64)
        return _LABELS_MIRRORED[values[:, ::-1]] if mirrored else _LABELS[values]


class EpochSampler(Sampler[int]):
    """The endless shuffled stream of indices for `FaceFolder`, from any sample onwards.

    Sample `n` of the stream is `epoch * length + shuffled index` with `epoch = n // length`; each epoch holds
    every index once, in an order of its own. A run that stopped after `n` samples goes on with `start=n`.

    Raises:
        ValueError: `length` below 1, a negative seed or start, or `stop` below `start`.
    """

    def __init__(self, length: int, seed: int = 0, start: int = 0, stop: int | None = None) -> None:
        """
        Args:
            length: number of items of the dataset.
            seed: any integer from 0 upwards.
            start: the first sample of the stream that is given.
            stop: the sample to stop before; None never stops.
        """
        if length < 1 or seed < 0 or start < 0 or (stop is not None and stop < start):
            raise ValueError(
                f"need length >= 1, seed >= 0 and 0 <= start <= stop; got {length}, {seed}, {start}, {stop}"
            )
        self.length, self.seed, self.start, self.stop = length, seed, start, stop

    def __iter__(self) -> Iterator[int]:
        sample = self.start
        while self.stop is None or sample < self.stop:
            epoch, first = divmod(sample, self.length)
            order = np.random.default_rng((self.seed, epoch, 0, _SHUFFLE_KEY)).permutation(self.length)
            last = self.length if self.stop is None else min(self.length, first + self.stop - sample)
            for index in order[first:last]:
                yield epoch * self.length + int(index)
            sample += last - first

    def __len__(self) -> int:
        """Number of samples from `start` to `stop`; an endless stream has none (TypeError)."""
        if self.stop is None:
            raise TypeError("an endless EpochSampler has no length")
        return self.stop - self.start


def _shared_flags(length: int) -> torch.Tensor:
    flags = torch.zeros(length, dtype=torch.bool)
    flags.untyped_storage().share_memory_()
    return flags


def _label_table(mirrored: bool) -> NDArray[np.int64]:
    table = np.full(256, NO_LABEL, dtype=np.int64)
    table[: len(REGIONS)] = np.arange(len(REGIONS))
    if mirrored:
        for left, right in _MIRRORED:
            table[left], table[right] = right, left
    return table


_LABELS = _label_table(mirrored=False)
_LABELS_MIRRORED = _label_table(mirrored=True)


def _find_pairs(
    folders: Folders, parsing: Path | str | Sequence[Path | str | None] | None
) -> list[tuple[Path, Path | None]]:
    """Every face with its label file or None, each face once, in the order of the folders."""
    listed = [folders] if isinstance(folders, str | os.PathLike) else folders
    roots = [Path(folder) for folder in listed]
    if not roots:
        raise ValueError("folders is empty")
    given: list[Path | None] = [None] * len(roots)
    if parsing is not None:
        entries = [parsing] if isinstance(parsing, str | os.PathLike) else list(parsing)
        given = [None if entry is None else Path(entry) for entry in entries]
        if len(given) != len(roots):
            raise ValueError(f"parsing needs one entry per folder: {len(given)} for {len(roots)} folders")
    pairs: dict[Path, Path | None] = {}
    for root, labels in zip(roots, given, strict=True):
        named = {path.relative_to(labels).as_posix(): path for path in find_images(labels)} if labels else {}
        # Which folder's labels belong to a folder of images is looked up once per folder, not once per image.
        siblings: dict[Path, tuple[Path, Path] | None] = {}
        excluded: dict[Path, bool] = {}
        faces = 0
        for path in find_images(root):
            parent = path.parent
            if parent not in excluded:
                excluded[parent] = _is_label_folder(parent, root, given)
                siblings[parent] = _sibling_labels(parent, root) if parsing is None else None
            if excluded[parent]:
                continue
            faces += 1
            sibling = siblings[parent]
            label = None
            if labels is not None:
                label = named.get(path.relative_to(root).with_suffix(".png").as_posix())
            else:
                label = _label_beside(path, sibling)
            if pairs.get(path) is None:
                pairs[path] = label
        if not faces:
            raise ValueError(f"folder {root} holds only region labels, no faces")
    return list(pairs.items())


def find_labels(images: Sequence[Path]) -> dict[Path, Path]:
    """The PNG of regions of each image that has one: `<folder>_parsing/<name>.png` beside the image's folder."""
    siblings = {folder: _sibling_labels(folder, folder) for folder in {path.parent for path in images}}
    labels = {path: _label_beside(path, siblings[path.parent]) for path in images}
    return {path: label for path, label in labels.items() if label is not None}


def _label_beside(path: Path, sibling: tuple[Path, Path] | None) -> Path | None:
    """The label file of an image, in what `_sibling_labels` found for its folder."""
    if sibling is None:
        return None
    label = sibling[1] / path.relative_to(sibling[0]).with_suffix(".png")
    return label if label.is_file() else None


def _upwards(folder: Path, root: Path) -> Iterator[Path]:
    """The folder and those above it, up to and with the root."""
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _is_label_folder(folder: Path, root: Path, given: Sequence[Path | None]) -> bool:
    known = {path.resolve() for path in given if path is not None}
    for above in _upwards(folder, root):
        path = Path(os.path.abspath(above))
        stem = path.name.removesuffix(PARSING_SUFFIX)
        if path.resolve() in known or (stem and stem != path.name and path.with_name(stem).is_dir()):
            return True
    return False


def _sibling_labels(folder: Path, root: Path) -> tuple[Path, Path] | None:
    """The nearest folder above (or this one) that has labels beside it, and the folder of these."""
    for above in _upwards(folder, root):
        path = Path(os.path.abspath(above))
        labels = path.with_name(path.name + PARSING_SUFFIX)
        if path.name and labels.is_dir():
            return above, labels
    return None


def _shorter_side(path: Path) -> int | None:
    """From the header alone; None where there is no readable one."""
    try:
        with Image.open(path) as image:
            return min(int(image.width), int(image.height))
    except DECODE_ERRORS:
        return None


def _crop_label(
    path: Path, image_size: tuple[int, int], box: tuple[int, int, int, int], size: int
) -> NDArray[np.uint8]:
    """The label values under the image's box, `(size, size)`, nearest; ValueError where they do not fit."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"labels must be 8-bit greyscale or palette, not {image.mode}")
        image.load()
        width, height = image.size
        across, down = width / image_size[0], height / image_size[1]
        if abs(width - image_size[0] * down) > 1.0 and abs(height - image_size[1] * across) > 1.0:
            raise ValueError(f"{width}x{height} labels do not have the shape of the {image_size} image")
        part = (
            box[0] * across,
            box[1] * down,
            min(box[2] * across, float(width)),
            min(box[3] * down, float(height)),
        )
        return np.asarray(image.resize((size, size), Image.Resampling.NEAREST, box=part))


def _vary_colour(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(1.0 - strength, 1.0 + strength)))
    return image


def _some(paths: Sequence[Path]) -> str:
    rest = len(paths) - 5
    return ", ".join(str(path) for path in paths[:5]) + (f" and {rest} more" if rest > 0 else "")
