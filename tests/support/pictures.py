"""Small pictures that the tests share."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(height: int = 40, width: int = 32, seed: int = 0) -> Image.Image:
    """A picture of random noise."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Write a picture, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def save_faces(folder: Path, count: int = 3, side: int = 40) -> Path:
    """Write smooth random pictures, which a network can learn, as PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder
