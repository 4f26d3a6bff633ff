"""Make a training sample from a face and its labels: random crop, mirroring, colours and hole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from showface.data.components import COMPONENTS, component_hole
from showface.data.images import image_to_tensor, mask_to_tensor, resize_box, square_crop
from showface.data.masks import KINDS, random_hole
from showface.data.regions import NO_LABEL, region_indices

# How far the hole of a component reaches beyond it, as fractions of the side.
GROWTH = (1 / 64, 1 / 16)


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
        components: share of samples whose hole hides a component of the face instead: see `component_hole`. For aligned
            faces.

    Raises:
        ValueError: an option out of range; the message starts with its name.
    """

    size: int = 256
    flip: bool = True
    colour: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.01, 0.6)
    kind: str = "both"
    components: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if not 0.0 < self.crop[0] <= self.crop[1] <= 1.0:
            raise ValueError(f"crop must be two numbers 0 < low <= high <= 1, got {self.crop}")
        if not 0.0 <= self.colour < 1.0:
            raise ValueError(f"colour must be at least 0 and below 1, got {self.colour}")
        if not 0.0 <= self.ratio[0] <= self.ratio[1] <= 1.0:
            raise ValueError(f"ratio must be two numbers 0 <= low <= high <= 1, got {self.ratio}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0.0 <= self.components <= 1.0:
            raise ValueError(f"components must be in [0, 1], got {self.components}")

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

        def place(whole: Image.Image) -> NDArray[np.uint8]:
            part = _crop_labels(whole, image_size, box, self.size)
            return part[:, ::-1] if mirrored else part

        image_size, regions = image.size, None
        if labels is not None:
            regions = region_indices(place(labels), mirrored=mirrored)
        image = resize_box(image, box, self.size)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colour:
            image = _vary_colour(image, self.colour, rng)
        # A share of 0 draws nothing.
        if self.components and rng.random() < self.components:
            component, growth = COMPONENTS[rng.integers(len(COMPONENTS))], float(rng.uniform(*GROWTH))
            # In the whole image: halves and the usual places are those of an aligned face, not of a crop.
            whole = None if labels is None else region_indices(_whole_labels(labels, self.size))
            hole = place(Image.fromarray(component_hole(component, self.size, whole, growth).view(np.uint8))) > 0
        else:
            hole = random_hole(self.size, self.size, rng, ratio=self.ratio, kind=self.kind)
        if regions is None:
            regions = np.full((self.size, self.size), NO_LABEL, dtype=np.int64)
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


def _whole_labels(labels: Image.Image, size: int) -> NDArray[np.uint8]:
    return np.asarray(labels.resize((size, size), Image.Resampling.NEAREST))


def _vary_colour(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(1.0 - strength, 1.0 + strength)))
    return image
