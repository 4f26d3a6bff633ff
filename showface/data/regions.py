"""The regions of a face, and label images that give the region of each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from showface.data.images import open_image

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
"""The 19 classes of CelebAMask-HQ, in its order."""

NO_LABEL = -1
"""The index of pixels whose region is unknown."""

ALIGNED_POINTS: tuple[tuple[float, float], ...] = (
    (0.3775, 0.4744),
    (0.6226, 0.4701),
    (0.5062, 0.6180),
    (0.3948, 0.7231),
    (0.6082, 0.7226),
)
"""The mean place (x, y) of both eyes, the nose's tip and both corners of the mouth in aligned faces.

They are fractions of the image's side. Of a pair, the point further left in the image comes first. Measured with the
detector YuNet on faces that are aligned as in FFHQ and CelebA-HQ.
"""

_LEFT_RIGHT = ((4, 5), (6, 7), (8, 9))


def read_labels(file: Path | BinaryIO, image_size: tuple[int, int]) -> Image.Image:
    """Read the label image of a photo.

    Args:
        file: greyscale or palette, 8 bits a pixel, with values 0..18 in the order of `REGIONS`.
        image_size: (width, height) of the photo. The labels may be smaller or larger, but must have its aspect ratio.

    Raises:
        ValueError: another mode or aspect ratio.
        FileNotFoundError, UnreadableImageError: the file can't be read.
    """
    with open_image(file) as image:
        labels = image.copy()
    if labels.mode not in ("L", "P"):
        raise ValueError(f"labels must be 8-bit greyscale or palette, not {labels.mode}")
    width, height = labels.size
    across, down = width / image_size[0], height / image_size[1]
    if abs(width - image_size[0] * down) > 1.0 and abs(height - image_size[1] * across) > 1.0:
        raise ValueError(f"{width}x{height} labels do not have the shape of the {image_size} image")
    return labels


def region_indices(labels: NDArray[np.uint8], *, mirrored: bool = False) -> NDArray[np.int64]:
    """Convert label values to indices into `REGIONS`, with `NO_LABEL` for all other values.

    Args:
        labels: `(H, W)` uint8.
        mirrored: swap left and right regions, for labels that have been mirrored.

    Returns:
        `(H, W)` int64.
    """
    return (_INDICES_MIRRORED if mirrored else _INDICES)[labels]


def _index_table(mirrored: bool) -> NDArray[np.int64]:
    table = np.full(256, NO_LABEL, dtype=np.int64)
    table[: len(REGIONS)] = np.arange(len(REGIONS))
    if mirrored:
        for left, right in _LEFT_RIGHT:
            table[left], table[right] = right, left
    return table


_INDICES = _index_table(mirrored=False)
_INDICES_MIRRORED = _index_table(mirrored=True)
