"""Holes that hide a whole component of the face: the eyes, the nose, the mouth, or half of the face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from showface.data import ALIGNED_POINTS, REGIONS
from showface.evaluation.protocol import Pair, hash_hole, read_regions
from showface.files import write_atomically

__all__ = ["COMPONENTS", "component_hole", "plan_components"]

COMPONENTS = ("eyes", "nose", "mouth", "left half", "right half", "lower half")
"""The components. Left and right are those of the image."""

_PARTS = {
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
_ELLIPSES: dict[str, tuple[_Ellipse, ...]] = {
    "eyes": ((*_LEFT_EYE, 0.05, 0.022), (*_RIGHT_EYE, 0.05, 0.022)),
    "nose": ((_MIDDLE_X, _NOSE[1] - 0.05, 0.085, 0.11),),
    "mouth": ((_MIDDLE_X, _MOUTH_Y + 0.03, 0.115, 0.05),),
    "face": ((_MIDDLE_X, 0.55, 0.28, 0.375),),
}
_GROWTH = 1 / 64
"""How far a hole reaches beyond its component, as a fraction of the side: 4 pixels of 256."""


def component_hole(component: str, size: int, regions: npt.NDArray[np.integer] | None = None) -> npt.NDArray[np.bool_]:
    """The hole `(size, size)` that hides a component of an aligned face, and 1/64 of the side around it.

    Args:
        component: one of `COMPONENTS`. A half is all pixels of the face (without hair, ears and neck) on one side of
            the middle between the eyes, or below the middle between the eyes and the mouth.
        size: side in pixels.
        regions: `(size, size)`, the index of each pixel's region in `REGIONS`. Without it, or if it has no pixel of the
            component, the component is drawn as ellipses at its usual place in aligned faces.

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
    window = 2 * round(_GROWTH * size) + 1
    grown = Image.fromarray(hole.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(window))
    return np.asarray(grown) > 0


def plan_components(
    images: Sequence[Path],
    folder: Path,
    size: int = 256,
    *,
    image_set: str,
    labels: Mapping[Path, Path] | None = None,
) -> list[Pair]:
    """Give each image a hole for each component, and write the holes into a folder as PNGs, white = hole.

    Args:
        images: files of aligned faces.
        folder: for the masks; created if needed.
        size: side in pixels of the square images that are scored.
        image_set: name of the images in the results.
        labels: for each image, its label image (0-18, as `showface.data.REGIONS`), if it has one.

    Returns:
        `len(images) * len(COMPONENTS)` pairs, component after component. The bin of a pair is its component.
    """
    folder.mkdir(parents=True, exist_ok=True)
    regions = {}
    for path, label in (labels or {}).items():
        with suppress(OSError, ValueError):  # `evaluate` reports what can't be read
            regions[path] = read_regions(label, path, size)
    pairs = []
    for component in COMPONENTS:
        for number, image in enumerate(images):
            hole = component_hole(component, size, regions.get(image))
            path = folder / f"{component.replace(' ', '-')}-{number:04d}.png"
            write_atomically(path, Image.fromarray(hole).save)
            ratio = float(hole.mean())
            pairs.append(
                Pair(image_set, image, path, hash_hole(hole), ratio, component, size, (labels or {}).get(image))
            )
    return pairs


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
