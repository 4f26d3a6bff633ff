"""Holes as people mark them: painted into the photo, cut out of it, or in a mask; and what looks wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageFilter

from showface.data.images import POLARITIES, Source, plain_alpha, read_image, read_mask
from showface.data.photo import Photo

OPAQUE = 250
"""Pixels with at least this alpha are known pixels. A lossy alpha channel is rarely exactly 255."""


def painted_hole(
    photo: Image.Image, colour: str, *, tolerance: int = 16, min_area: int | None = None
) -> NDArray[np.bool_]:
    """The hole that was painted into a photo in one colour.

    A pixel is painted if each of its channels is within `tolerance` of the colour. Small pieces, such as a highlight in
    an eye, are left out. The rest is grown by one pixel, and by one more where a pixel is nearer to the colour than to
    its opposite, because the soft edge of a stroke is a blend of paint and photo. The transparent part of a photo is
    not painted, though it reads as white.

    Args:
        photo: RGB, or another mode that `read_image` converts, such as `Photo.original`.
        colour: a name or a hex code, as Pillow's ImageColor reads them, such as "white" or "#ff0000".
        tolerance: largest difference in a channel, 0 to 255. More is needed for paint in a strongly compressed JPEG.
        min_area: pieces with fewer pixels are left out. The default is 1/5000 of the photo, and at least 16.

    Returns:
        bool array (H, W), True = hole.

    Raises:
        ValueError: an unknown colour, or a tolerance or an area out of range.
    """
    if not 0 <= tolerance <= 255:
        raise ValueError(f"tolerance must be in 0..255, got {tolerance}")
    if min_area is None:
        min_area = max(16, photo.width * photo.height // 5000)
    if min_area < 0:
        raise ValueError(f"min_area must be at least 0 pixels, got {min_area}")
    paint = np.array(paint_colour(colour), dtype=np.uint8)
    rgb = np.asarray(photo if photo.mode == "RGB" else read_image(photo))
    # uint8 has no negative numbers, so the difference is the larger value less the smaller one.
    distance = (np.maximum(rgb, paint) - np.minimum(rgb, paint)).max(axis=-1)
    opaque = ~alpha_hole(photo) if _has_alpha(photo) else np.True_
    core = _without_specks((distance <= tolerance) & opaque, min_area)
    return (_ring(core, 1) | (_ring(core, 2) & (distance < 128))) & opaque


def paint_colour(text: str) -> tuple[int, ...]:
    """Red, green and blue, 0 to 255, of a colour as Pillow's ImageColor reads it.

    Raises:
        ValueError: an unknown colour, or one such as rgb(300,0,0), which ImageColor takes.
    """
    colour = ImageColor.getrgb(text)[:3]
    if not all(0 <= channel <= 255 for channel in colour):
        raise ValueError(f"unknown color specifier: {text!r}")
    return colour


def alpha_hole(photo: Image.Image) -> NDArray[np.bool_]:
    """The transparent part of a photo, as an eraser leaves it. Half-transparent pixels belong to it.

    Args:
        photo: the upright photo in its own mode, such as `Photo.original`.

    Returns:
        bool array (H, W), True = hole.

    Raises:
        ValueError: the photo has no transparency.
    """
    if not _has_alpha(photo):
        raise ValueError(f"the photo has no transparency (its mode is {photo.mode}), so it gives no hole")
    return np.asarray(plain_alpha(photo).convert("RGBA").getchannel("A")) < OPAQUE


def _has_alpha(photo: Image.Image) -> bool:
    return photo.mode in ("La", "RGBa") or "A" in photo.getbands() or "transparency" in photo.info


def grow_hole(hole: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Add all pixels within a distance of a hole.

    Exact Euclidean distance, in time proportional to area times distance.

    Args:
        hole: (H, W) bool.
        pixels: the distance, at least 0.

    Raises:
        ValueError: a negative distance.
    """
    if pixels < 0:
        raise ValueError(f"a hole can't grow by {pixels} pixels: the number must be at least 0")
    height = hole.shape[0]
    pixels = min(pixels, sum(hole.shape))  # more reaches no further, and would not fit into int32
    across = _row_distance(hole, pixels + 1)
    grown = hole.copy()
    for down in range(min(pixels, height - 1) + 1):
        # A pixel this many rows away may be this far to the side.
        reached = across <= int((pixels**2 - down**2) ** 0.5)
        grown[down:] |= reached[: height - down]
        grown[: height - down] |= reached[down:]
    return grown


def piece_areas(hole: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The number of pixels of each connected piece of a hole. Pixels that touch at a corner are connected."""
    runs = _label(hole)
    return np.bincount(runs.label, runs.stop - runs.start).astype(np.int64)


@dataclass(frozen=True)
class HoleReport:
    """What a hole looks like.

    Attributes:
        ratio: the hole's fraction of the photo, 0 to 1.
        pieces: the number of connected pieces.
        problems: sentences about what looks wrong; empty if nothing does.
    """

    ratio: float
    pieces: int
    problems: tuple[str, ...]


def describe_hole(photo: Image.Image, hole: NDArray[np.bool_], mask: Source | None = None) -> HoleReport:
    """Look at a hole before it is filled, and say what looks wrong.

    Args:
        photo: any mode; only its size is used.
        hole: (H, W) bool of the photo's size, True = hole.
        mask: the image that the hole was read from, to look at its size and its grey levels too.

    Raises:
        FileNotFoundError, UnreadableImageError: the mask can't be read.
    """
    ratio, problems = float(hole.mean()), []
    border = np.concatenate([hole[0], hole[-1], hole[:, 0], hole[:, -1]])
    if not hole.any():
        problems.append("the hole is empty: nothing is filled")
    elif hole.all():
        problems.append("the hole is the whole photo: no known pixel is left")
    elif ratio > 0.6 and border.mean() > 0.75:
        problems.append("the mask looks inverted: the hole is most of the photo and most of its border")
    if mask is not None:
        grey = read_image(mask).convert("L")
        if grey.size != photo.size:
            sizes = f"{grey.width}x{grey.height}, the photo {photo.width}x{photo.height}"
            stretched = abs(grey.width * photo.height - grey.height * photo.width) > max(*grey.size, *photo.size)
            problems.append(f"the mask is {sizes}" + (": it is stretched to another shape" if stretched else ""))
        middle = sum(grey.histogram()[32:224]) / (grey.width * grey.height)
        if middle > 0.02:
            problems.append(f"{middle:.0%} of the mask is grey: it is cut at one half")
    return HoleReport(ratio, len(piece_areas(hole)), tuple(problems))


@dataclass(frozen=True)
class Marks:
    """How the hole of a photo is marked: by a mask, by paint or by transparency.

    Attributes:
        mask: the mask image, or a folder of masks.
        paint: the colour of the paint, as for `painted_hole`.
        alpha: the transparent part is the hole.
        polarity: the colour of the hole in the mask, "white" or "black".
        invert: swap hole and known pixels.
        grow: grow the hole by this many pixels, after `invert`.
        own: each photo comes with a mask of its own, which `hole` gets.

    Raises:
        ValueError: not exactly one of mask, paint, alpha and own, an unknown colour or polarity, or a negative number
            of pixels.
    """

    mask: Path | None = None
    paint: str | None = None
    alpha: bool = False
    polarity: str = "white"
    invert: bool = False
    grow: int = 0
    own: bool = False

    def __post_init__(self) -> None:
        if sum((self.mask is not None, self.paint is not None, self.alpha, self.own)) != 1:
            raise ValueError("mark the hole in one way: by a mask, with --paint COLOUR, or with --alpha")
        if self.paint is not None:
            paint_colour(self.paint)
        if self.polarity not in POLARITIES:
            raise ValueError(f"polarity must be one of {POLARITIES}, got {self.polarity!r}")
        if self.grow < 0:
            raise ValueError(f"a hole can't grow by {self.grow} pixels: the number must be at least 0")

    def hole(self, photo: Photo, mask: Source | None = None) -> NDArray[np.bool_]:
        """The hole of a photo, (H, W) bool; `mask` is the photo's own mask, if each has one.

        Raises:
            ValueError: one photo and a folder of masks, no mask for a photo that has its own, or no transparency.
            FileNotFoundError, UnreadableImageError: the mask can't be read.
        """
        if mask is None:
            mask = self.mask
        if mask is not None:
            if isinstance(mask, Path) and mask.is_dir():
                raise ValueError(f"{mask} is a folder of masks, but {photo.name} is one photo: give one mask")
            hole = read_mask(mask, (photo.rgb.height, photo.rgb.width), self.polarity)
        elif self.paint is not None:
            hole = painted_hole(photo.original, self.paint)
        elif self.alpha:
            hole = alpha_hole(photo.original)
        else:
            raise ValueError(f"{photo.name} must come with a mask of its own")
        return grow_hole(~hole if self.invert else hole, self.grow)

    def __str__(self) -> str:
        """What counts as the hole, in words."""
        if self.mask is not None or self.own:
            what = f"{self.polarity} in the mask"
        else:
            what = "transparent" if self.alpha else f"painted {self.paint}"
        return f"{'not ' if self.invert else ''}{what} is the hole" + f", grown by {self.grow} pixels" * (self.grow > 0)


class _Runs(NamedTuple):
    """The horizontal runs of True pixels of an image, from top to bottom, and the piece that each belongs to."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    label: NDArray[np.int64]


def _label(hole: NDArray[np.bool_]) -> _Runs:
    """Find the connected pieces of a hole, labelled from 0.

    Runs are joined, not pixels, so the time depends on the length of the outlines. Without a package for it (scipy and
    OpenCV have one), this takes some tenths of a second for 12 megapixels.
    """
    width = hole.shape[1] + 2  # a border of False on each side, so that a run never goes on in the next row
    flat = np.pad(hole, ((0, 0), (1, 1))).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start, stop = edges[::2], edges[1::2]
    # The runs in the next row that touch a run, corners included, follow one another.
    first = np.searchsorted(stop, start + width, side="left")
    last = np.searchsorted(start, stop + width, side="right")
    count = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(start)), count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    root = np.arange(len(start))
    while len(upper):
        a, b = root[upper], root[lower]
        if np.array_equal(a, b):
            break
        # Hang each root under the smallest root that it touches, then let every run point to the root of its tree.
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(root, root[root]):
            root = root[root]
    label = np.unique(root, return_inverse=True)[1].reshape(-1)
    row = start // width
    return _Runs(row, start - row * width - 1, stop - row * width - 1, label)


def _without_specks(hole: NDArray[np.bool_], min_area: int) -> NDArray[np.bool_]:
    runs = _label(hole)
    small = np.bincount(runs.label, runs.stop - runs.start) < min_area
    result = hole.copy()
    drop = small[runs.label]
    for row, start, stop in zip(runs.row[drop], runs.start[drop], runs.stop[drop], strict=True):
        result[row, start:stop] = False
    return result


def _ring(hole: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The hole grown by a square of few pixels."""
    return np.asarray(Image.fromarray(hole).convert("L").filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def _row_distance(hole: NDArray[np.bool_], limit: int) -> NDArray[np.int32]:
    """The distance in pixels of each pixel to the nearest True pixel of its row, at most `limit`."""
    column = np.arange(hole.shape[1], dtype=np.int32)
    far = np.int32(hole.shape[1] + limit)
    left = np.maximum.accumulate(np.where(hole, column, -far), axis=1)
    right = np.minimum.accumulate(np.where(hole, column, 2 * far)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(np.minimum(column - left, right - column), np.int32(limit))
