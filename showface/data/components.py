"""Holes that hide a whole component of the face: an eye or both, the nose, the mouth, or half of the face."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from showface.data.regions import ALIGNED_POINTS, REGIONS

COMPONENTS = ("left eye", "right eye", "eyes", "nose", "mouth", "left half", "right half", "lower half")
"""The components. Left and right are those of the image."""

# The labels' left is the person's, which is the right of the image.
_PARTS = {
    "left eye": ("right eye",),
    "right eye": ("left eye",),
    "eyes": ("left eye", "right eye"),
    "nose": ("nose",),
    "mouth": ("mouth interior", "upper lip", "lower lip"),
}
_FACE = ("skin", "eyeglasses", "left brow", "right brow", *(region for part in _PARTS.values() for region in part))
# Without labels, a component is made of ellipses: centre x and y, half-width and half-height, as fractions of the side.
# Their sizes are fitted to the labels of CelebAMask-HQ.
_Ellipse = tuple[float, float, float, float]
_LEFT_EYE, _RIGHT_EYE, _NOSE, _LEFT_MOUTH, _RIGHT_MOUTH = ALIGNED_POINTS
_MIDDLE_X = (_LEFT_EYE[0] + _RIGHT_EYE[0]) / 2
_EYES_Y, _MOUTH_Y = (_LEFT_EYE[1] + _RIGHT_EYE[1]) / 2, (_LEFT_MOUTH[1] + _RIGHT_MOUTH[1]) / 2
_EYES: tuple[_Ellipse, _Ellipse] = ((*_LEFT_EYE, 0.05, 0.022), (*_RIGHT_EYE, 0.05, 0.022))
_ELLIPSES: dict[str, tuple[_Ellipse, ...]] = {
    "left eye": _EYES[:1],
    "right eye": _EYES[1:],
    "eyes": _EYES,
    "nose": ((_MIDDLE_X, _NOSE[1] - 0.05, 0.085, 0.11),),
    "mouth": ((_MIDDLE_X, _MOUTH_Y + 0.03, 0.115, 0.05),),
    "face": ((_MIDDLE_X, 0.55, 0.28, 0.375),),
}


def component_hole(
    component: str, size: int, regions: npt.NDArray[np.integer] | None = None, growth: float = 1 / 64
) -> npt.NDArray[np.bool_]:
    """The hole `(size, size)` that hides a component of an aligned face, and some pixels around it.

    Args:
        component: one of `COMPONENTS`. A half is all pixels of the face (without hair, ears and neck) on one side of
            the middle between the eyes, or below the middle between the eyes and the mouth.
        size: side in pixels.
        regions: `(size, size)`, the index of each pixel's region in `REGIONS`. Without it, or if it has no pixel of the
            component, the component is drawn as ellipses at its usual place in aligned faces.
        growth: how far the hole reaches beyond the component, as a fraction of the side: 1/64 is 4 pixels of 256.

    Raises:
        ValueError: another component, or regions of another shape.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(COMPONENTS)}, got {component!r}")
    if regions is not None and regions.shape != (size, size):
        raise ValueError(f"regions must be of shape {(size, size)}, got {regions.shape}")
    part = component if component in _PARTS else "face"
    hole = np.zeros((size, size), dtype=np.bool_)
    if regions is not None:
        hole = np.isin(regions, [REGIONS.index(name) for name in _PARTS.get(part, _FACE)])
        hole = _cut(component, hole)
    if not hole.any():
        hole = _cut(component, _draw(_ELLIPSES[part], size))
    window = 2 * round(growth * size) + 1
    grown = Image.fromarray(hole.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(window))
    return np.asarray(grown) > 0


def _cut(component: str, face: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The half of the face that the component names, or all of another component."""
    size = len(face)
    place = (np.arange(size) + 0.5) / size
    if component == "left half":
        return face & (place[None] < _MIDDLE_X)
    if component == "right half":
        return face & (place[None] >= _MIDDLE_X)
    if component == "lower half":
        return face & (place[:, None] >= (_EYES_Y + _MOUTH_Y) / 2)
    return face


def _draw(ellipses: Sequence[_Ellipse], size: int) -> npt.NDArray[np.bool_]:
    place = (np.arange(size) + 0.5) / size
    hole = np.zeros((size, size), dtype=np.bool_)
    for x, y, across, down in ellipses:
        hole |= ((place[None] - x) / across) ** 2 + ((place[:, None] - y) / down) ** 2 <= 1
    return hole
