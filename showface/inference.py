"""Fill the hole of a photo, given by a mask."""

import warnings
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from showface.data import image_to_tensor, mask_to_tensor, read_image, read_mask, tensor_to_image
from showface.models import InpaintingNetwork
from showface.registry import load_model

Photo: TypeAlias = str | PathLike[str] | Image.Image
Mask: TypeAlias = str | PathLike[str] | Image.Image | NDArray[np.bool_]


@dataclass(frozen=True)
class Restoration:
    """The result of `restore`. All images are RGB and have the photo's size.

    Attributes:
        photo: the input, as it was read.
        hole: (H, W) bool, True where the photo was filled.
        coarse: the result of the coarse stage with known pixels from the photo; `image` if there is no coarse stage.
        image: the result. Its known pixels are exactly those of `photo`.
    """

    photo: Image.Image
    hole: NDArray[np.bool_]
    coarse: Image.Image
    image: Image.Image

    @property
    def hole_ratio(self) -> float:
        """The hole's fraction of the photo, 0 to 1."""
        return float(self.hole.mean())

    @property
    def masked(self) -> Image.Image:
        """The photo with a white hole."""
        return _paste(self.photo, self.hole, Image.new("RGB", self.photo.size, "white"))


def inpaint(
    image: Photo,
    mask: Mask,
    *,
    model: InpaintingNetwork | None = None,
    mask_polarity: str = "white",
    size: int | None = None,
) -> Image.Image:
    """Fill the hole of a face photo.

        result = showface.inpaint("photo.jpg", "mask.png")
        result.save("restored.png")

    Args:
        image: a path or a PIL image of any mode. Its EXIF orientation is applied, and transparent parts become white.
        mask: a path, a PIL image, or a bool array (H, W), True = hole. Grey values are cut at one half. A mask with
            another size than the image is resized, with a warning.
        model: a model from `showface.load_model`, on any device; by default the bundled model, on the CPU.
        mask_polarity: the colour of the hole, "white" or "black"; ignored for a bool array.
        size: a photo with a longer shorter side is reduced to this size for filling, and the fill is enlarged again.
            The default is the size at which the model was trained. Known pixels always keep their full resolution.

    Returns:
        An RGB image of the photo's size, with unchanged known pixels. For an empty mask it is the photo, with a
        warning.

    Raises:
        FileNotFoundError, OSError: a file is missing or is not an image.
        ValueError: an unknown polarity, a size below 16, or an array that is not bool (H, W).
    """
    return restore(image, mask, model=model, mask_polarity=mask_polarity, size=size).image


def restore(
    image: Photo,
    mask: Mask,
    *,
    model: InpaintingNetwork | None = None,
    mask_polarity: str = "white",
    size: int | None = None,
) -> Restoration:
    """Like `inpaint`, but also return the coarse image and the hole."""
    if size is not None and size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    photo = read_image(image)
    hole = _read_hole(mask, (photo.height, photo.width), mask_polarity)
    if not hole.any():
        warnings.warn("the mask is empty: nothing to fill, the photo is returned unchanged", stacklevel=3)
        return Restoration(photo, hole, photo, photo)
    model = model if model is not None else default_model()
    fill, coarse = _run(model, photo, hole, size or model.config.image_size)
    return Restoration(photo, hole, coarse=_paste(photo, hole, coarse), image=_paste(photo, hole, fill))


@cache
def default_model() -> InpaintingNetwork:
    """The bundled model, on the CPU. It is loaded once."""
    return load_model()


def _read_hole(mask: Mask, size: tuple[int, int], polarity: str) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray):
        return read_mask(mask, size, polarity=polarity)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask array must be bool (H, W), True = hole; got {mask.dtype} {mask.shape}")
    return mask if mask.shape == size else read_mask(Image.fromarray(mask.astype(np.uint8) * 255), size)


@torch.inference_mode()
def _run(
    model: InpaintingNetwork, photo: Image.Image, hole: NDArray[np.bool_], size: int
) -> tuple[Image.Image, Image.Image]:
    """Fill a photo with its shorter side reduced to `size`. Returns the result and the coarse image in full size."""
    shrink = min(1.0, size / min(photo.size))
    small_size = (max(1, round(shrink * photo.width)), max(1, round(shrink * photo.height)))
    small, small_hole = photo, hole
    if small_size != photo.size:
        # Pixels under the hole must not leak into known pixels when the photo is reduced. So the hole is blanked first,
        # and a reduced pixel belongs to the hole if any part of it does.
        blanked = _paste(photo, hole, Image.new("RGB", photo.size))
        small = blanked.resize(small_size, Image.Resampling.BOX)
        cover = Image.fromarray(hole.astype(np.uint8) * 255).resize(small_size, Image.Resampling.BOX)
        small_hole = np.asarray(cover) > 0
    device = next(model.parameters()).device
    training = model.training
    try:
        output = model.eval()(
            image_to_tensor(small)[None].to(device, memory_format=torch.channels_last),
            mask_to_tensor(small_hole)[None].to(device),
        )
    finally:
        model.train(training)
    images = (tensor_to_image(x[0].float().cpu()) for x in (output.image, output.coarse))
    result, coarse = (x.resize(photo.size, Image.Resampling.BICUBIC) if x.size != photo.size else x for x in images)
    return result, coarse


def _paste(photo: Image.Image, hole: NDArray[np.bool_], inside: Image.Image) -> Image.Image:
    """Replace the pixels in the photo's hole by those of `inside`, an image of the same size."""
    return Image.fromarray(np.where(hole[..., None], np.asarray(inside), np.asarray(photo)))
