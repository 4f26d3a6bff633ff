"""Draw a hole, and the faces that were found, on a photo."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from showface.faces import Face

_GAP = 8
_SIDE = 1024  # longest side of each of the two images in pixels; larger photos are reduced
_HOLE, _FACE = (230, 30, 60), (30, 200, 255)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Put images of one height beside each other, on white."""
    width = sum(image.width + _GAP for image in images) - _GAP
    sheet = Image.new("RGB", (width, images[0].height), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + _GAP
    return sheet


def hole_picture(photo: Image.Image, hole: NDArray[np.bool_], faces: Iterable[Face]) -> Image.Image:
    """The photo, and beside it the photo with its hole in red and its faces in blue.

    Args:
        photo: RGB.
        hole: (H, W) bool, True = hole.
        faces: their boxes and points are drawn.
    """
    scale = min(1.0, _SIDE / max(photo.size))
    size = (max(1, round(scale * photo.width)), max(1, round(scale * photo.height)))
    small = photo.resize(size, Image.Resampling.BOX)
    # A thin stroke must not vanish when it is reduced: any part of a hole makes a pixel red.
    cover = np.asarray(Image.fromarray(hole.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 0
    strength = Image.fromarray(cover.astype(np.uint8) * np.uint8(150))
    marked = Image.composite(Image.new("RGB", size, _HOLE), small, strength)
    draw = ImageDraw.Draw(marked)
    line = max(1, max(size) // 300)
    for face in faces:
        draw.rectangle([scale * value for value in face.box], outline=_FACE, width=line)
        for x, y in scale * face.points:
            draw.ellipse((x - line, y - line, x + line, y + line), fill=_FACE)
    return side_by_side((small, marked))
