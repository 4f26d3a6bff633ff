"""From a face and its region labels to an item of the training set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from showface.data.images import image_to_tensor, mask_to_tensor, resize_box, square_crop
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

NO_LABEL = -1

_MIRRORED = ((4, 5), (6, 7), (8, 9))


@dataclass(frozen=True)
class FaceAugmentation:
    """Crops, mirrors and colours a face at random and gives it a random hole.

    Attributes:
        size: side of the items in pixels.
        flip: mirror half of the items; left and right labels are swapped with it.
        colour: strength of random brightness, contrast and saturation, in [0, 1); 0 is none.
        crop_scale: range of the random crop's side as a fraction of the shorter side, in (0, 1].
        ratio, kind: of the holes, see `random_hole`.

    Raises:
        ValueError: an option out of range.
    """

    size: int = 256
    flip: bool = True
    colour: float = 0.0
    crop_scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.01, 0.6)
    kind: str = "both"

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if self.size < 1:
            raise ValueError(f"need size >= 1, got {self.size}")
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop_scale must satisfy 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0.0 <= self.colour < 1.0:
            raise ValueError(f"colour must be in [0, 1), got {self.colour}")
        if not 0.0 <= self.ratio[0] <= self.ratio[1] <= 1.0 or self.kind not in KINDS:
            wanted = f"need ratio 0 <= low <= high <= 1 and kind in {KINDS}"
            raise ValueError(f"{wanted}; got {self.ratio}, {self.kind!r}")

    def __call__(
        self, image: Image.Image, labels: Image.Image | None, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """An item, as `FaceDataset` describes it.

        Args:
            image: RGB.
            labels: what `read_labels` gives for this image, or None.
            rng: everything random is drawn from it, the same number of times with and without labels.
        """
        scale = float(rng.uniform(*self.crop_scale))
        box = square_crop(image.width, image.height, scale, rng)
        mirrored = bool(rng.random() < 0.5) and self.flip
        if labels is None:
            regions = np.full((self.size, self.size), NO_LABEL, dtype=np.int64)
        else:
            values = _crop_labels(labels, image.size, box, self.size)
            regions = _LABELS_MIRRORED[values[:, ::-1]] if mirrored else _LABELS[values]
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


def read_labels(file: Path | BinaryIO, image_size: tuple[int, int]) -> Image.Image:
    """The region labels of an image of `(width, height)`, 8 bits a pixel; any scale of the image will do.

    Raises:
        ValueError: not 8-bit greyscale or palette, or not the shape of the image.
        showface.data.images.DECODE_ERRORS: the file can't be read.
    """
    with Image.open(file) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"labels must be 8-bit greyscale or palette, not {image.mode}")
        labels = image.copy()
    width, height = labels.size
    across, down = width / image_size[0], height / image_size[1]
    if abs(width - image_size[0] * down) > 1.0 and abs(height - image_size[1] * across) > 1.0:
        raise ValueError(f"{width}x{height} labels do not have the shape of the {image_size} image")
    return labels


def _crop_labels(
    labels: Image.Image, image_size: tuple[int, int], box: tuple[int, int, int, int], size: int
) -> NDArray[np.uint8]:
    """The label values under the image's box, `(size, size)`, nearest."""
    across, down = labels.width / image_size[0], labels.height / image_size[1]
    part = (
        box[0] * across,
        box[1] * down,
        min(box[2] * across, float(labels.width)),
        min(box[3] * down, float(labels.height)),
    )
    return np.asarray(labels.resize((size, size), Image.Resampling.NEAREST, box=part))


def _label_table(mirrored: bool) -> NDArray[np.int64]:
    table = np.full(256, NO_LABEL, dtype=np.int64)
    table[: len(REGIONS)] = np.arange(len(REGIONS))
    if mirrored:
        for left, right in _MIRRORED:
            table[left], table[right] = right, left
    return table


_LABELS = _label_table(mirrored=False)
_LABELS_MIRRORED = _label_table(mirrored=True)


def _vary_colour(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(1.0 - strength, 1.0 + strength)))
    return image
