"""Whether the two eyes of a face go together: how alike one and the mirrored other are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from showface.data import ALIGNED_POINTS

# Half-width and half-height of the box around an eye, and how far the boxes may be moved against each other, as
# fractions of the side: eyes are not at exactly the same place in all aligned faces.
_ACROSS, _DOWN, _SHIFT = 0.085, 0.05, 0.025


def eye_likeness(image: npt.NDArray[np.uint8]) -> float:
    """The correlation of one eye with the other one, mirrored, of an aligned face; higher is more alike.

    It is the correlation coefficient of the grey values in two boxes around the eyes, at the best of all small shifts.
    So brightness and contrast don't matter, but the lids' and brows' shape, the gaze, and detail that only one eye has
    do. The eyes of one person are less alike if the face is turned or lit from the side, so compare the value with the
    photo's. Source: *ours*.

    Args:
        image: `(H, H, 3)` uint8, a face as in `ALIGNED_POINTS`.

    Returns:
        A value in [-1, 1]; 0 if there is nothing in one of the boxes.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"an aligned face must be uint8 of shape (H, H, 3), got {image.dtype} {image.shape}")
    shift = max(1, round(_SHIFT * len(image)))
    grey = image.mean(axis=2)
    left = _centred(grey[_box(len(image), 0)])
    around = grey[_box(len(image), 1, shift)][:, ::-1]
    right = _centred(np.lib.stride_tricks.sliding_window_view(around, left.shape))
    scale = np.sqrt((left**2).sum() * (right**2).sum(axis=(2, 3)))
    products = (left * right).sum(axis=(2, 3))
    return float(np.divide(products, scale, out=np.zeros_like(scale), where=scale > 1e-6).max())


def hides_an_eye(hole: npt.NDArray[np.bool_]) -> bool:
    """Whether a hole `(H, H)` covers most of the middle of an eye's box, for one of the eyes of an aligned face."""
    return any(bool(hole[_box(len(hole), eye, part=0.5)].mean() > 0.5) for eye in (0, 1))


def _box(side: int, eye: int, grown: int = 0, part: float = 1.0) -> tuple[slice, slice]:
    """The box around an eye, left or right in the image, grown by some pixels; or the middle part of it."""
    x, y = (round(place * side) for place in ALIGNED_POINTS[eye])
    across, down = (max(1, round(part * half * side)) + grown for half in (_ACROSS, _DOWN))
    return slice(y - down, y + down), slice(x - across, x + across)


def _centred(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return boxes - boxes.mean(axis=(-2, -1), keepdims=True)
