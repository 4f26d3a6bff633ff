"""Cut faces out of a photo as FFHQ and CelebA-HQ show them, and set crops back into the photo's pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from showface.faces.detector import Face

# Where the detector's points lie in the crops of FFHQ and CelebA-HQ, as fractions of the side (ours, measured).
TEMPLATE = np.array([(0.3775, 0.4744), (0.6226, 0.4701), (0.5062, 0.6180), (0.3948, 0.7231), (0.6082, 0.7226)])
TEMPLATE.setflags(write=False)
TOUCHED = 1e-4  # a crop's pixel with a larger part in the hole belongs to it; rounding stays below

Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels
Matrix = NDArray[np.float64]


def similarity(points: NDArray[np.float64], target: NDArray[np.float64]) -> Matrix:
    """The rotation, scale and shift that moves points closest to a target, in least squares (Umeyama 1991).

    Args:
        points, target: (N, 2), N >= 2.

    Returns:
        (2, 3): `points @ m[:, :2].T + m[:, 2]` is close to the target. It never mirrors.

    Raises:
        ValueError: other shapes, values that are not finite, or points that all coincide.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    if points.shape != target.shape or points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
        raise ValueError(f"expected two arrays (N, 2) with N >= 2, got {points.shape} and {target.shape}")
    if not (np.isfinite(points).all() and np.isfinite(target).all()):
        raise ValueError("the points must be finite")
    x, y = points - points.mean(0), target - target.mean(0)
    spread = float((x**2).sum())
    # In two dimensions the rotation without reflection needs no SVD: it is the direction of (cosine, sine).
    cosine = float((x * y).sum())
    sine = float((x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum())
    if spread == 0.0 or (cosine == 0.0 and sine == 0.0):
        raise ValueError("the points coincide, or no rotation fits them better than another")
    linear = np.array([[cosine, -sine], [sine, cosine]]) / spread
    return np.concatenate([linear, (target.mean(0) - linear @ points.mean(0))[:, None]], axis=1)


@dataclass(frozen=True)
class Alignment:
    """Where a face lies in a photo.

    Attributes:
        matrix: (2, 3), takes a point of the photo, in pixels as in `Face`, to the unit square of the aligned crop.
    """

    matrix: Matrix

    @classmethod
    def of(cls, face: Face) -> "Alignment":
        """The alignment that puts the face's points closest to where the training sets have them."""
        return cls(similarity(face.points, TEMPLATE))

    @property
    def side(self) -> float:
        """The side of the aligned square in pixels of the photo."""
        return float(1.0 / np.hypot(*self.matrix[:, 0]))

    @property
    def corners(self) -> NDArray[np.float64]:
        """(4, 2): the corners of the aligned square in the photo, from the top left one clockwise."""
        return _apply(_invert(self.matrix), np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]))


@dataclass(frozen=True)
class Crops:
    """Aligned crops of one photo.

    Attributes:
        images: (N, 3, S, S) float32 in [-1, 1]; 0 in the hole, and mirrored at the photo's border.
        holes: (N, 1, S, S) bool, True where any part of the pixel is in the photo's hole.
        outside: (N, 1, S, S) bool, True where any part of the pixel lies outside of the photo.
    """

    images: Tensor
    holes: Tensor
    outside: Tensor


@dataclass(frozen=True)
class Patch:
    """A crop in the photo's pixels.

    Attributes:
        box: left, top, right, bottom: where it lies in the photo.
        image: (C, bottom - top, right - left) float32.
        valid: (bottom - top, right - left) bool, True where the pixel's centre is inside the crop.
    """

    box: Box
    image: Tensor
    valid: Tensor


def crop_faces(photo: Tensor, alignments: Sequence[Alignment], size: int, hole: Tensor | None = None) -> Crops:
    """Cut aligned faces out of a photo.

    Pixels under the hole are never used. Where the photo has more pixels than the crop, each crop pixel is a mean over
    its area. A face may be larger than the photo, or leave it.

    Args:
        photo: (3, H, W), uint8 or float in [-1, 1], on any device.
        alignments: of the faces.
        size: S, the side of the crops in pixels.
        hole: (H, W) bool, True = hole; None for a whole photo.

    Raises:
        ValueError: a wrong shape or dtype, or a size below 1.
    """
    if photo.ndim != 3 or photo.shape[0] != 3 or 0 in photo.shape:
        raise ValueError(f"expected a photo (3, H, W), got {tuple(photo.shape)}")
    if photo.dtype != torch.uint8 and not photo.is_floating_point():
        raise ValueError(f"the photo must be uint8 or floating point, got {photo.dtype}")
    if hole is not None and (hole.dtype != torch.bool or hole.shape != photo.shape[1:]):
        raise ValueError(f"expected a bool hole {tuple(photo.shape[1:])}, got {hole.dtype} {tuple(hole.shape)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    crops = [_crop(photo, alignment, size, hole) for alignment in alignments]
    if not crops:
        none = torch.zeros(0, 1, size, size, dtype=torch.bool, device=photo.device)
        return Crops(torch.zeros(0, 3, size, size, device=photo.device), none, none)
    return Crops(*(torch.stack(parts) for parts in zip(*crops, strict=True)))


def set_back(crop: Tensor, alignment: Alignment, photo_size: tuple[int, int], within: Box | None = None) -> Patch:
    """Resample an aligned crop into the pixels of the photo. Memory depends on the patch, not on the photo.

    Args:
        crop: (C, S, S) float.
        alignment: the one that it was cut with.
        photo_size: (height, width) of the photo.
        within: left, top, right, bottom: the part of the photo that is wanted, for example the hole's bounding box.

    Returns:
        The patch. Its box is empty if nothing of the crop lies in the photo, or in `within`.

    Raises:
        ValueError: the crop has another shape.
    """
    if crop.ndim != 3 or crop.shape[1] != crop.shape[2] or 0 in crop.shape:
        raise ValueError(f"expected a crop (C, S, S), got {tuple(crop.shape)}")
    height, width = photo_size
    low, high = alignment.corners.min(0), alignment.corners.max(0)
    limits = within if within is not None else (0, 0, width, height)
    left, top = (max(0, limits[axis], floor(low[axis])) for axis in (0, 1))
    right, bottom = (min((width, height)[axis], limits[axis + 2], ceil(high[axis])) for axis in (0, 1))
    if right <= left or bottom <= top:
        empty = crop.new_zeros(crop.shape[0], 0, 0, dtype=torch.float32)
        return Patch((left, top, left, top), empty, empty.new_zeros(0, 0, dtype=torch.bool))
    side = crop.shape[-1]
    # From the patch's pixels to the crop's pixels.
    matrix = side * _shift(alignment.matrix, (left, top))
    pixels, factor = _shrink(crop.float()[None], side / alignment.side)
    shape = (bottom - top, right - left)
    image = _sample(pixels, matrix / factor, shape, "bicubic", "border", _samples(side / alignment.side / factor))[0]
    x, y = _grid(matrix / side, (1, 1), shape, crop.device).unbind(-1)
    valid = (x.abs() <= 1.0) & (y.abs() <= 1.0)
    return Patch((left, top, right, bottom), image, valid[0])


def _crop(photo: Tensor, alignment: Alignment, size: int, hole: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    height, width = photo.shape[1:]
    scale = alignment.side / size  # pixels of the photo for each pixel of the crop
    left, top, right, bottom = _window(alignment, width, height, margin=3 + ceil(scale))
    pixels = photo[:, top:bottom, left:right]
    pixels = pixels.float() / 127.5 - 1.0 if pixels.dtype == torch.uint8 else pixels.float()
    covered = (
        torch.zeros_like(pixels[:1]) if hole is None else hole[top:bottom, left:right].to(pixels.device).float()[None]
    )
    pixels = torch.where(covered > 0, 0.0, pixels)
    pixels, factor = _shrink(pixels[None], scale)
    covered, _ = _shrink(covered[None], scale)
    covered = (covered > 0).float()
    if hole is not None:
        # A bicubic sample reaches one pixel beyond the four pixels around it. Those of the hole get the mean of their
        # known neighbours, so that nothing from under the hole comes in.
        known = 1.0 - covered
        near = F.avg_pool2d(pixels * known, 3, 1, 1) / F.avg_pool2d(known, 3, 1, 1).clamp_min(1e-6)
        pixels = torch.where(covered > 0, near, pixels)
    back = _invert(alignment.matrix)
    samples = _samples(scale / factor)
    matrix = np.concatenate([back[:, :2] / size, back[:, 2:]], axis=1)  # from the crop's pixels to the photo's
    local = (matrix - np.array([[0, 0, left], [0, 0, top]])) / factor
    image = _sample(pixels, local, (size, size), "bicubic", "reflection", samples)[0]
    in_hole = _sample(covered, local, (size, size), "bilinear", "reflection", samples)[0] > TOUCHED
    places = _grid(_finer(matrix, samples), (height, width), (size * samples, size * samples), photo.device)
    leaves = (places.abs() > 1.0).any(-1)[:, None].float()
    outside = F.max_pool2d(leaves, samples)[0] > 0
    return torch.where(in_hole, 0.0, image).clamp(-1.0, 1.0), in_hole, outside


def _window(alignment: Alignment, width: int, height: int, margin: int) -> Box:
    """The part of the photo that the crop needs: its box, and what is mirrored where it leaves the photo."""
    low, high = alignment.corners.min(0) - margin, alignment.corners.max(0) + margin
    box = []
    for axis, full in enumerate((width, height)):
        # Beyond a border, the mirrored pixels come from inside.
        first = min(low[axis], 2 * full - high[axis]) if high[axis] > full else low[axis]
        last = max(high[axis], -low[axis]) if low[axis] < 0 else high[axis]
        box.append((min(max(0, floor(first)), full - 1), max(min(full, ceil(last)), 1)))
    (left, right), (top, bottom) = box
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _shrink(pixels: Tensor, scale: float) -> tuple[Tensor, int]:
    """Means over squares of pixels, if `scale` pixels go into one and it is 4 or more: (1, C, h, w), the side."""
    factor = max(1, min(floor(scale / 2), *pixels.shape[-2:]))
    if factor == 1:
        return pixels, 1
    height, width = pixels.shape[-2:]
    pixels = F.pad(pixels, (0, -width % factor, 0, -height % factor), mode="replicate")
    return F.avg_pool2d(pixels, factor), factor


def _samples(scale: float) -> int:
    """How many samples a pixel gets in each direction so that none of the `scale` pixels below it is missed."""
    return max(1, min(ceil(scale - 1e-3), 8))


def _sample(pixels: Tensor, matrix: Matrix, shape: tuple[int, int], mode: str, border: str, samples: int) -> Tensor:
    """Draw an image (1, C, *shape) from (1, C, h, w); the matrix takes its pixels to those of `pixels`."""
    fine = (shape[0] * samples, shape[1] * samples)
    grid = _grid(_finer(matrix, samples), (pixels.shape[-2], pixels.shape[-1]), fine, pixels.device)
    drawn = F.grid_sample(pixels, grid, mode=mode, padding_mode=border, align_corners=False)
    return F.avg_pool2d(drawn, samples) if samples > 1 else drawn


def _grid(matrix: Matrix, source: tuple[int, int], shape: tuple[int, int], device: torch.device) -> Tensor:
    """Where the pixels of `shape` lie in a source of (height, width), (1, *shape, 2), -1 to 1 inside the source."""
    height, width = shape
    # `affine_grid` counts from -1 to 1 on both sides. The products are made here, in float64.
    from_unit = np.array([[width / 2, 0.0, width / 2], [0.0, height / 2, height / 2], [0.0, 0.0, 1.0]])
    scale = np.array([[2.0 / source[1]], [2.0 / source[0]]])
    theta = scale * (matrix @ from_unit) - np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    theta = torch.from_numpy(theta).to(device, torch.float32)[None]
    return F.affine_grid(theta, [1, 1, height, width], align_corners=False)


def _finer(matrix: Matrix, samples: int) -> Matrix:
    """The matrix for a grid with `samples` times as many points in each direction."""
    return np.concatenate([matrix[:, :2] / samples, matrix[:, 2:]], axis=1)


def _shift(matrix: Matrix, origin: tuple[int, int]) -> Matrix:
    """The matrix for coordinates that are counted from `origin`."""
    return np.concatenate([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ np.array(origin))[:, None]], axis=1)


def _invert(matrix: Matrix) -> Matrix:
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2:])], axis=1)


def _apply(matrix: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ matrix[:, :2].T + matrix[:, 2]
