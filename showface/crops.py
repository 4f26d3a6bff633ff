"""Square crops of a photo, which may be turned: read them for a network, and read its fills at the photo's pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from showface.data import ALIGNED_POINTS

RAMP = 0.12  # width of the border of a crop, as a fraction of its side, in which its weight falls to zero
TEMPLATE = np.array(ALIGNED_POINTS)
THIN = 4  # a hole is thin if no square with this fraction of its side fits into it
KNOWN = 0.999  # a resampled pixel is known if no part of it is in the hole, up to rounding


@dataclass(frozen=True)
class Crop:
    """A square in a photo, in pixels, where (0, 0) is the outer corner of the first pixel.

    Attributes:
        x, y: the corner that becomes the crop's upper left one.
        dx, dy: the way from there to the upper right one. The lower left one lies at (x - dy, y + dx).
        is_face: whether a face fills the crop as in training. Crops are equal if they are the same square.
    """

    x: float
    y: float
    dx: float
    dy: float
    is_face: bool = field(default=False, compare=False)

    @property
    def side(self) -> float:
        """The length of a side in pixels of the photo."""
        return float(np.hypot(self.dx, self.dy))

    def to_photo(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points (..., 2) of the unit square lie in the photo."""
        u, v = points[..., 0], points[..., 1]
        return np.stack([self.x + u * self.dx - v * self.dy, self.y + u * self.dy + v * self.dx], axis=-1)

    def to_unit(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points (..., 2) of the photo lie in the unit square."""
        x, y = points[..., 0] - self.x, points[..., 1] - self.y
        square = self.dx**2 + self.dy**2
        return np.stack([x * self.dx + y * self.dy, y * self.dx - x * self.dy], axis=-1) / square

    def bounds(self, width: int, height: int, margin: int = 4) -> tuple[int, int, int, int]:
        """The part of a photo of this size that the crop and a margin cover: left, top, right, bottom."""
        corners = self.to_photo(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        left, top = np.floor(corners.min(axis=0)).astype(int) - margin
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) + margin
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)

    def covers(self, width: int, height: int) -> bool:
        """Whether a photo of this size lies in the crop."""
        corners = np.array([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]])
        unit = self.to_unit(corners)
        return bool(((unit > -1e-6) & (unit < 1 + 1e-6)).all())

    def distance(self, other: "Crop") -> float:
        """The largest distance between corners of two crops, as a fraction of the other one's side."""
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        apart = np.linalg.norm(self.to_photo(corners) - other.to_photo(corners), axis=-1)
        return float(apart.max()) / other.side

    def widened(self, factor: float) -> "Crop":
        """The crop with the same middle and a side that is `factor` times as long."""
        corner = self.to_photo(np.full(2, (1 - factor) / 2))
        return Crop(float(corner[0]), float(corner[1]), factor * self.dx, factor * self.dy)

    def scaled(self, factor: float) -> "Crop":
        """The crop of the photo resized by `factor`."""
        return Crop(factor * self.x, factor * self.y, factor * self.dx, factor * self.dy, self.is_face)

    @classmethod
    def of_face(cls, points: NDArray[np.float64]) -> "Crop":
        """The crop in which the five points (5, 2) of a face lie as near as possible to TEMPLATE."""
        face, template = points @ np.array([1, 1j]), TEMPLATE @ np.array([1, 1j])
        # A similarity is a product and a sum of complex numbers, so least squares are a quotient.
        to, at = face - face.mean(), template - template.mean()
        turn = (at.conj() @ to) / (at.conj() @ at)
        corner = face.mean() - turn * template.mean()
        return cls(corner.real, corner.imag, turn.real, turn.imag, is_face=True)

    @classmethod
    def around(cls, left: float, top: float, right: float, bottom: float, side: float) -> "Crop":
        """An upright square of this side, with the centre of a box."""
        return cls((left + right - side) / 2, (top + bottom - side) / 2, side, 0.0)


def read_crop(
    crop: Crop, photo: NDArray[np.uint8], hole: NDArray[np.bool_], filled: NDArray[np.uint8], size: int
) -> tuple[Tensor, Tensor]:
    """Resample a crop to `size` x `size`.

    A pixel belongs to the hole if any part of it does, or lies outside the photo.

    Args:
        photo, hole: (H, W, 3) and (H, W).
        filled: the photo with a rough fill, which is what the filter sees beside known pixels.

    Returns:
        image (3, size, size), float32 in [-1, 1], and hole (1, size, size), 1 = corrupted.
    """
    cover, grid, edge = _reduced(crop, hole, size)
    if not cover.size:
        return torch.zeros(3, size, size), torch.ones(1, size, size)
    known = _grid_sample(torch.from_numpy(cover == 0).float()[None], grid, "bilinear")
    outside = ((grid < -1) | (grid > edge)).any(dim=-1)
    return resample(crop, filled, size) / 127.5 - 1, ((known < KNOWN) | outside).float()


def resample(crop: Crop, photo: NDArray[np.uint8], size: int) -> Tensor:
    """A crop of a photo (H, W, 3) in other pixels: (3, size, size), float32 in [0, 255].

    The photo's border is continued beyond the photo. A crop that lies beside it is black.
    """
    part, grid, _ = _reduced(crop, photo, size)
    if not part.size:
        return torch.zeros(3, size, size)
    return _grid_sample(torch.from_numpy(part.transpose(2, 0, 1).astype(np.float32)), grid, "bicubic").clamp(0, 255)


def _reduced(
    crop: Crop, image: NDArray[np.uint8] | NDArray[np.bool_], size: int
) -> tuple[NDArray[np.uint8], Tensor, Tensor]:
    """The part of an image, or of a hole (255 = hole), that a crop covers, reduced.

    Returns:
        the part; where the crop's pixels (size, size, 2) lie in it, from -1 to 1 as for `grid_sample`; and the right
        and lower edge of the part in these coordinates (2,).
    """
    height, width = image.shape[:2]
    left, top, right, bottom = crop.bounds(width, height)
    part = image[top : max(top, bottom), left : max(left, right)].astype(np.uint8, copy=False)
    if image.dtype == np.bool_:
        part = part * np.uint8(255)
    if not part.size:
        return part, torch.empty(0), torch.empty(0)
    whole = np.array([right - left, bottom - top])
    # Reduce by whole numbers, which averages; what is left to do is at most a factor of two.
    factor = max(1, int(crop.side / size))
    if factor > 1:
        part = np.asarray(Image.fromarray(part).reduce(factor))
    # The last pixel of a reduced part may lie in part beyond the image.
    spanned = factor * np.array([part.shape[1], part.shape[0]])
    turn = np.array([[crop.dx, -crop.dy], [crop.dy, crop.dx]])
    shift = 2 * (np.array([crop.x, crop.y]) - (left, top)) + turn.sum(axis=1) - spanned
    theta = torch.from_numpy(np.column_stack([turn, shift]) / spanned[:, None])
    grid = F.affine_grid(theta[None], [1, 1, size, size], align_corners=False)[0].float()
    return part, grid, torch.from_numpy(2 * whole / spanned - 1).float()


def sample_fill(crop: Crop, fill: Tensor, points: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """The fill of a crop at points of the photo.

    Args:
        fill: (3, size, size).
        points: (N, 2), x and y.

    Returns:
        colours (3, N); and weights (N,), 1 inside the crop, falling to 0 at its border, 0 outside.
    """
    unit = crop.to_unit(points)
    # A fill that is larger than the crop in the photo is averaged first.
    factor = max(1, round(fill.shape[-1] / crop.side))
    small = F.avg_pool2d(fill[None], factor, ceil_mode=True, count_include_pad=False)[0] if factor > 1 else fill
    colours = sample(small, unit * fill.shape[-1] / factor, "bicubic")
    distance = torch.from_numpy(np.minimum(unit, 1 - unit).min(axis=-1)).float()
    return colours, (distance / RAMP).clamp(0, 1)


def sample(planes: Tensor, points: NDArray[np.float64], mode: str = "bilinear") -> Tensor:
    """Values of planes (C, H, W) at points (N, 2), in pixels from the outer corner: (C, N)."""
    grid = 2 * points / np.array([planes.shape[2], planes.shape[1]]) - 1
    return _grid_sample(planes, torch.from_numpy(grid).float()[None], mode)[:, 0]


def _grid_sample(planes: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(planes[None], grid[None], mode=mode, padding_mode="border", align_corners=False)[0]


def split_boxes(
    rows: NDArray[np.int64], columns: NDArray[np.int64], gap: int, thin_side: int
) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) around the pieces of a hole, given by the rows and columns of its pixels.

    A box is cut at its widest empty row or column of at least `gap` pixels, as long as there is one. A box longer than
    `thin_side` in which the hole is thin everywhere, such as scratches and dust, is cut across its longer side, since
    what is thin can be filled from what is near.
    """
    found, waiting = [], [(columns, rows)] if len(rows) else []
    while waiting:
        place = waiting.pop()
        first, last = [int(line.min()) for line in place], [int(line.max()) for line in place]
        cuts = [_widest_gap(np.flatnonzero(np.bincount(line))) for line in place]
        axis = int(cuts[1][1] > cuts[0][1])
        at, length = cuts[axis]
        if length < gap:
            axis = int(last[1] - first[1] > last[0] - first[0])
            side = last[axis] - first[axis] + 1
            part = np.zeros((last[1] - first[1] + 1, last[0] - first[0] + 1), np.bool_)
            part[place[1] - first[1], place[0] - first[0]] = True
            if side <= thin_side or _squares(part, side // THIN).any():
                found.append((first[0], first[1], last[0] + 1, last[1] + 1))
                continue
            # Cut at the multiple of the highest power of two. So most boxes stay when the hole changes elsewhere.
            bits = (first[axis] ^ last[axis]).bit_length() - 1
            at = last[axis] >> bits << bits
        for half in (place[axis] < at, place[axis] >= at):
            waiting.append((place[0][half], place[1][half]))
    return sorted(found)


def wide_part(hole: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The pixels of a hole (H, W) that are in a square of `side` pixels in the hole, or near one.

    Near is a quarter of the side: the rim of a round hole, where no square fits, belongs to it.
    """
    near = side // 4
    return hole & (_box_sums(_squares(hole, side), side + 2 * near, before=side - 1 + near) > 0)


def _squares(hole: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The upper left corners (H, W) of the squares of `side` pixels that fit into a hole (H, W)."""
    return _box_sums(hole, side) == side**2


def _box_sums(values: NDArray[np.bool_], side: int, before: int = 0) -> NDArray[np.int32]:
    """The sums (H, W) of squares of an image (H, W), which begin `before` pixels above and left of each pixel."""
    sums = np.pad(values.astype(np.int32), ((1, 0), (1, 0)))
    sums = sums.cumsum(0, out=sums).cumsum(1, out=sums)
    top, left = (np.arange(length) - before for length in values.shape)
    rows = [np.clip(line, 0, values.shape[0]) for line in (top, top + side)]
    columns = [np.clip(line, 0, values.shape[1]) for line in (left, left + side)]
    bands = sums[rows[1]] - sums[rows[0]]
    return bands[:, columns[1]] - bands[:, columns[0]]


def _widest_gap(occupied: NDArray[np.int64]) -> tuple[int, int]:
    """The middle of the widest gap between increasing numbers, and its length."""
    gaps = np.diff(occupied) - 1
    if not len(gaps):
        return 0, 0
    widest = int(gaps.argmax())
    return int(occupied[widest] + 1 + gaps[widest] // 2), int(gaps[widest])


def blend_fills(
    crops: Sequence[Crop], fills: Sequence[Tensor], points: NDArray[np.float64], local: NDArray[np.bool_] | None = None
) -> Tensor:
    """The fills of several crops at points (N, 2) of the photo, blended where crops overlap: (3, N).

    Faces count more than other crops, but not at the points of `local` (N,), where they hardly count at all. Crops
    agree at their borders, because a crop has no weight there.
    """
    total, weight = torch.zeros(3, len(points)), torch.zeros(len(points))
    for crop, fill in zip(crops, fills, strict=True):
        unit = crop.to_unit(points)
        inside = np.flatnonzero(((unit > 0) & (unit < 1)).all(axis=-1))
        if not len(inside):
            continue
        colours, here = sample_fill(crop, fill, points[inside])
        # Far stronger, so that a face is not mixed with a fill that does not know it; still smooth at the border.
        if crop.is_face:
            here = here * (1 + 99 * here**2)
            if local is not None:
                here = here.masked_fill(torch.from_numpy(local[inside]), 0)
        here = here + 1e-4
        index = torch.from_numpy(inside)
        total.index_add_(1, index, colours * here)
        weight.index_add_(0, index, here)
    return total / weight.clamp_min(1e-9)
