"""Make a training sample from a face and its labels: random crop, mirroring, colours and hole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from showface.data.images import image_to_tensor, mask_to_tensor, resize_box, square_crop
from showface.data.masks import KINDS, random_hole
from showface.data.regions import NO_LABEL, region_indices


@dataclass(frozen=True)
class Augmentation:
    """How a face becomes a training sample: a random crop, mirroring, colours and a random hole.

    Attributes:
        size: side of the samples in pixels.
        flip: mirror half of the samples, and swap left and right labels in them.
        colour: strength of random brightness, contrast and saturation, in [0, 1); 0 turns them off.
        crop: range of the random crop's side, as a fraction of the image's shorter side, in (0, 1].
        ratio: range of the hole ratio, see `random_hole`.
        kind: "strokes", "blocks" or "both", see `random_hole`.

    Raises:
        ValueError: an option out of range.
    """

    size: int = 256
    flip: bool = True
    colour: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.01, 0.6)
    kind: str = "both"

    def __post_init__(self) -> None:
        low, high = self.crop
        if self.size < 1:
            raise ValueError(f"need size >= 1, got {self.size}")
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop must satisfy 0 < low <= high <= 1, got {self.crop}")
        if not 0.0 <= self.colour < 1.0:
            raise ValueError(f"colour must be in [0, 1), got {self.colour}")
        if not 0.0 <= self.ratio[0] <= self.ratio[1] <= 1.0 or self.kind not in KINDS:
            wanted = f"need ratio 0 <= low <= high <= 1 and kind in {KINDS}"
            raise ValueError(f"{wanted}; got {self.ratio}, {self.kind!r}")

    def __call__(
        self, image: Image.Image, labels: Image.Image | None, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """Make a sample, as described by `FaceDataset`.

        Args:
            image: RGB.
            labels: the label image from `read_labels`, or None.
            rng: the only source of randomness. Labels do not change what is drawn from it.
        """
        scale = float(rng.uniform(*self.crop))
        box = square_crop(image.width, image.height, scale, rng)
        mirrored = bool(rng.random() < 0.5) and self.flip
        if labels is None:
            regions = np.full((self.size, self.size), NO_LABEL, dtype=np.int64)
        else:
            values = _crop_labels(labels, image.size, box, self.size)
            regions = region_indices(values[:, ::-1] if mirrored else values, mirrored=mirrored)
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


def _crop_labels(
    labels: Image.Image, image_size: tuple[int, int], box: tuple[int, int, int, int], size: int
) -> NDArray[np.uint8]:
    """Crop labels to a box given in the image's pixels; `(size, size)`, nearest neighbour."""
    across, down = labels.width / image_size[0], labels.height / image_size[1]
    part = (
        box[0] * across,
        box[1] * down,
        min(box[2] * across, float(labels.width)),
        min(box[3] * down, float(labels.height)),
    )
    return np.asarray(labels.resize((size, size), Image.Resampling.NEAREST, box=part))


def _vary_colour(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(1.0 - strength, 1.0 + strength)))
    return image
