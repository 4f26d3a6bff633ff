"""Fill the hole of a photo, given by a mask: `inpaint`, or an `Inpainter` for many photos."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from os import PathLike
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from showface.crops import Crop
from showface.data import read_image, read_mask
from showface.data.images import Source, source_name
from showface.faces import FaceDetector
from showface.hole_filling import FindFaces, Progress, fill_holes
from showface.models import InpaintingNetwork
from showface.models.config import MAX_IMAGE_SIZE
from showface.registry import load_model, move_model

Model: TypeAlias = InpaintingNetwork | str | PathLike[str]
Mask: TypeAlias = str | PathLike[str] | Image.Image | NDArray[np.bool_]


@dataclass(frozen=True)
class Restoration:
    """The result of `Inpainter.restore`. All images are RGB and have the photo's size.

    Attributes:
        photo: the input, as it was read.
        hole: (H, W) bool, True where the photo was filled.
        image: the result. Its known pixels are exactly those of `photo`.
        crops: the squares of the photo that were filled, faces first. `crop.to_photo` gives their corners.
    """

    photo: Image.Image
    hole: NDArray[np.bool_]
    image: Image.Image
    crops: tuple[Crop, ...] = ()

    @property
    def faces(self) -> int:
        """The number of faces that were filled."""
        return sum(crop.is_face for crop in self.crops)

    @property
    def hole_ratio(self) -> float:
        """The hole's fraction of the photo, 0 to 1."""
        return float(self.hole.mean())

    @property
    def masked(self) -> Image.Image:
        """The photo with a white hole."""
        return _set_in(np.asarray(self.photo), self.hole, np.uint8(255))


class Inpainter:
    """Fills the holes of photos with one model, which is loaded once.

        inpainter = showface.Inpainter(device="cuda")
        result = inpainter("photo.jpg", "mask.png")

    Faces are found wherever they are in the photo, also turned or small. Each face that the hole touches is filled in
    an aligned crop, as the model was trained. The rest of the hole is filled in crops around its pieces.

    Args:
        model: a model from `showface.load_model`, or its folder or bundled name; by default the bundled model.
        device: where the model and the face detector run; by default where the model is. A network is moved there.
        faces: look for faces. Otherwise the hole is filled as in a picture without any.
        size: side in pixels of the crops that the model fills; by default the size at which it was trained.
        detail: 0 = smooth to 1 = sharp, for the bundled model and others that have the choice: see
            `showface.load_model`. Smooth fills are closer to the photo pixel by pixel, sharp ones look more real.
        precision: "fp32", or "bf16" for bfloat16 by autocast: faster on a GPU, and on a CPU with AMX.

    Raises:
        TypeError: another kind of model, or a size that is no integer.
        ValueError: a size below 16 or above 4096, a model that is not in float32, a device that can't be used, another
            precision, or a `detail` that is out of range or can't be chosen.
        FileNotFoundError, ValueError: a model's folder, as for `showface.load_model`.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        device: str | torch.device | None = None,
        faces: bool = True,
        size: int | None = None,
        detail: float | None = None,
        precision: str = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
        if size is not None and (isinstance(size, bool) or not isinstance(size, Integral)):
            raise TypeError(f"size must be an integer, got {size!r}")
        if size is not None and size < 16:
            raise ValueError(f"size must be at least 16 pixels, got {size}")
        if size is not None and size > MAX_IMAGE_SIZE:
            raise ValueError(f"size must be at most {MAX_IMAGE_SIZE} pixels, got {size}")
        self.model = _find_model(model, detail, device)
        self.size = int(size or self.model.config.image_size)
        self.precision = precision
        self.detector = FaceDetector(next(self.model.parameters()).device) if faces else None

    def __call__(self, image: Source, mask: Mask, *, mask_polarity: str = "white") -> Image.Image:
        """Fill the hole of a photo; see `inpaint`."""
        return self._fill([(image, mask)], mask_polarity)[0].image

    def restore(
        self,
        image: Source,
        mask: Mask,
        *,
        mask_polarity: str = "white",
        progress: Progress = lambda stage, fraction: None,
    ) -> Restoration:
        """Like a call, but also return the hole and the faces.

        `progress` is called with a stage of the work, such as "filling faces", and the fraction that is done, 0 to 1.
        An exception that it raises ends the work.
        """
        return self._fill([(image, mask)], mask_polarity, progress)[0]

    def restore_many(
        self,
        photos: Iterable[tuple[Source, Mask]],
        *,
        mask_polarity: str = "white",
        progress: Progress = lambda stage, fraction: None,
    ) -> list[Restoration]:
        """Fill several photos at once. All their faces go through the model in common batches, which suits a GPU.

        Args:
            photos: photos and masks, as for `inpaint`. All of them are in memory together.
            mask_polarity: as for `inpaint`.
            progress: as for `restore`.
        """
        return self._fill(list(photos), mask_polarity, progress)

    def _fill(
        self,
        photos: list[tuple[Source, Mask]],
        mask_polarity: str,
        progress: Progress = lambda stage, fraction: None,
    ) -> list[Restoration]:
        """`restore_many`. Each public function calls this one itself, so its warnings point to the caller's line."""
        read = []
        for image, mask in photos:
            photo = read_image(image)
            read.append((photo, _read_hole(mask, (photo.height, photo.width), mask_polarity)))
        work = [(np.asarray(photo), hole) for photo, hole in read if hole.any()]
        training = self.model.training
        try:
            ways = self._ways_to_find()
            fills = iter(fill_holes(self.model.eval(), work, ways, self.size, progress, self.precision))
        finally:
            self.model.train(training)
        results = []
        for (photo, hole), name in zip(read, _names([image for image, _ in photos]), strict=True):
            if not hole.any():
                problem = "the mask is empty: nothing to fill, the photo is returned unchanged"
                warnings.warn(problem + name, stacklevel=3)
                results.append(Restoration(photo, hole, photo))
                continue
            fill = next(fills)
            results.append(Restoration(photo, hole, _set_in(np.asarray(photo), hole, fill.image), tuple(fill.crops)))
            if self.detector is not None and not results[-1].faces:
                problem = "no face was found at the hole, which is filled as in a picture without faces"
                warnings.warn(problem + name, stacklevel=3)
        return results

    def _ways_to_find(self) -> list[FindFaces]:
        """Upright faces, then doubtful ones, then turned ones: each of these also finds more that is no face."""
        detector = self.detector
        if detector is None:
            return []

        def way(threshold: float, turned: bool) -> FindFaces:
            return lambda photo: [face.points for face in detector.find(photo, threshold=threshold, turned=turned)]

        return [way(0.6, False), way(0.3, False), way(0.6, True)]


def inpaint(
    image: Source,
    mask: Mask,
    *,
    model: Model | None = None,
    device: str | torch.device | None = None,
    mask_polarity: str = "white",
    size: int | None = None,
    faces: bool = True,
    detail: float | None = None,
    precision: str = "fp32",
) -> Image.Image:
    """Fill the hole of a photo.

        result = showface.inpaint("photo.jpg", "mask.png")
        result.save("restored.png")

    The result has pixels alone. `showface.data.read_photo` and `save_photo` keep what else the photo's file carried,
    such as EXIF data and the colour profile: see examples/restore_photo.py.

    Args:
        image: a path, a file open for reading bytes, a PIL image of any mode, or a uint8 array (H, W, 3) or (H, W). The
            EXIF orientation is applied, and transparent parts become white.
        mask: a path, a PIL image, or a bool array (H, W), True = hole. Grey values are cut at one half. A mask with
            another size than the image is resized, with a warning.
        model, device, size, faces, detail, precision: see `Inpainter`.
        mask_polarity: the colour of the hole, "white" or "black"; ignored for a bool array.

    Returns:
        An RGB image of the photo's size, with unchanged known pixels. For an empty mask it is the photo, with a
        warning.

    Raises:
        FileNotFoundError, OSError: a file is missing or is not an image.
        TypeError, ValueError: an unknown polarity, an image or a mask of another type, or as for `Inpainter`.
    """
    inpainter = Inpainter(model, device=device, faces=faces, size=size, detail=detail, precision=precision)
    return inpainter._fill([(image, mask)], mask_polarity)[0].image


@cache
def default_model() -> InpaintingNetwork:
    """The bundled model, on the CPU. It is loaded once, and shared."""
    return load_model()


def _find_model(model: Model | None, detail: float | None, device: str | torch.device | None) -> InpaintingNetwork:
    """The network, loaded if needed. Raises TypeError or ValueError for one that can't fill float32 images."""
    if model is None and detail is None and device is None:
        return default_model()
    if model is None or isinstance(model, str | PathLike):
        return load_model("default" if model is None else model, "cpu" if device is None else device, detail=detail)
    # torch.compile wraps a module in one of another class.
    if not isinstance(getattr(model, "_orig_mod", model), InpaintingNetwork):
        raise TypeError(
            "model must be a network of showface.load_model, or the folder or bundled name of one, got "
            f"{type(model).__name__}"
        )
    if detail is not None:
        raise ValueError("detail can't be chosen for a network that is loaded: give it to showface.load_model")
    others = {x.dtype for x in model.parameters()} - {torch.float32}
    if others:
        name = str(others.pop()).removeprefix("torch.")
        raise ValueError(
            f"the model is in {name}, and photos are filled in float32: call model.float(), and for half precision "
            "give precision='bf16'"
        )
    return model if device is None else move_model(model, device)


def _names(photos: list[Source]) -> list[str]:
    """What ends a warning about each photo: its path, or its number among several. Equal warnings are shown once."""
    several = len(photos) > 1
    return [
        f": {source_name(photo)}" if isinstance(photo, str | PathLike) else f": photo {number}" if several else ""
        for number, photo in enumerate(photos, 1)
    ]


def _read_hole(mask: Mask, size: tuple[int, int], polarity: str) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray):
        return read_mask(mask, size, polarity=polarity)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask array must be bool (H, W), True = hole; got {mask.dtype} {mask.shape}")
    return mask if mask.shape == size else read_mask(Image.fromarray(mask.astype(np.uint8) * 255), size)


def _set_in(photo: NDArray[np.uint8], hole: NDArray[np.bool_], colours: NDArray[np.uint8] | np.uint8) -> Image.Image:
    """The photo with these colours (N, 3) in its hole, or with one grey level."""
    result = photo.copy()
    result[hole] = colours
    return Image.fromarray(result)
