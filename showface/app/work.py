"""What a job does: decode the photo within limits, fill it or find its faces, encode the result. All in memory."""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from showface.app.forms import READABLE, InpaintForm
from showface.app.guard import Refusal
from showface.app.jobs import JobStoppedError, Progress
from showface.data import (
    Photo,
    UnreadableImageError,
    alpha_hole,
    encode_photo,
    grow_hole,
    painted_hole,
    read_mask,
    read_photo,
)
from showface.data.images import TooManyPixelsError, open_image
from showface.inference import Inpainter
from showface.models.find import BUNDLED, find_detail
from showface.models.interpolation import read_weights
from showface.models.network import check_detail
from showface.out_of_memory import memory_errors
from showface.registry import about_model, load_model

KINDS = {
    "PNG": ("image/png", ".png"),
    "JPEG": ("image/jpeg", ".jpg"),
    "WEBP": ("image/webp", ".webp"),
    "TIFF": ("image/tiff", ".tif"),
    "BMP": ("image/bmp", ".bmp"),
    "AVIF": ("image/avif", ".avif"),
    "HEIF": ("image/heic", ".heic"),
    "JPEG2000": ("image/jp2", ".jp2"),
    "PPM": ("image/x-portable-pixmap", ".ppm"),
}
"""The formats in which results are saved, each with its type and suffix. Photos in others come back as PNG."""
SAVED_AS = {"MPO": "JPEG", "DIB": "BMP"}

TOO_LARGE = "the photo is too large for the memory of this machine"


@dataclass
class Model:
    """A model that is offered.

    Attributes:
        name, description, licence: for people.
        with_faces, without_faces: fill holes with and without looking for faces, by the same network.
        usual_detail: the `detail` where a job asks for none; None if the model has no choice of it.
        detail: the one whose weights the network has now.
        folder: where the weights are.
    """

    name: str
    description: str
    licence: str
    with_faces: Inpainter
    without_faces: Inpainter
    usual_detail: float | None = None
    detail: float | None = None
    folder: Path = Path()

    def choose_detail(self, detail: float | None) -> None:
        """Give the network the weights of this `detail`. No other job may run, since all use the same network.

        Raises:
            Refusal: it can't be chosen for this model.
        """
        bundled, fixed = BUNDLED.get(self.name, (None, None))
        if detail is not None and fixed is not None and self.folder == bundled:
            raise Refusal(422, f"{self.name} is default with detail {fixed:g}: choose default")
        if detail is not None:
            try:
                check_detail(detail, self.name, self.usual_detail)
            except ValueError as error:
                raise Refusal(422, str(error)) from None
        wanted = self.usual_detail if detail is None else detail
        if wanted is not None and wanted != self.detail:
            self.with_faces.model.load_state_dict(read_weights(self.folder, wanted))
            self.detail = wanted


def load_models(
    names: Iterable[str] = ("default",), device: str = "cpu", *, precision: str = "fp32"
) -> dict[str, Model]:
    """Load models by name; the first is the default.

    Args:
        names: bundled models, or folders of saved models, which are offered by the name of the folder.
        device: where they run.
        precision: as for `showface.Inpainter`.

    Raises:
        FileNotFoundError, ValueError: as for `showface.load_model`; or two models with one name.
    """
    models: dict[str, Model] = {}
    for name in names:
        about = about_model(name)
        if about.name in models:
            raise ValueError(f"two models have the name {about.name}: rename a folder")
        network = load_model(about.folder, device, detail=find_detail(name))
        models[about.name] = Model(
            about.name,
            about.description,
            about.licence,
            Inpainter(network, precision=precision),
            Inpainter(network, faces=False, precision=precision),
            about.detail,
            about.detail,
            about.folder,
        )
    if not models:
        raise ValueError("the app needs a model")
    return models


@dataclass(frozen=True)
class Filled:
    """The answer to `POST /api/inpaint`, without its notes."""

    data: bytes
    media_type: str
    filename: str
    faces: int
    hole_ratio: float
    milliseconds: int


def inpaint(form: InpaintForm, model: Model, max_pixels: int, progress: Progress) -> Filled:
    """Fill the hole of a photo.

    Raises:
        Refusal: the photo or its mask can't be read or does not fit, or the result can't be saved.
    """
    began = time.monotonic()
    progress("reading", 0.0)
    photo, form_of_photo = read_upload(form.photo, max_pixels)
    hole = _hole(form, photo, max_pixels)
    fill = model.with_faces if form.faces else model.without_faces
    with _memory_errors():
        model.choose_detail(form.detail)
        result = fill.restore(photo.rgb, hole, progress=lambda stage, part: progress(stage, 0.05 + 0.9 * part))
    progress("saving", 0.95)
    kind = _kind(form_of_photo) if form.keep_format else "PNG"
    data = _encoded(result.image, kind, photo, hole)
    media_type, suffix = KINDS[kind]
    name = f"{stem(form.filename)}-filled{suffix}"
    milliseconds = round(1000 * (time.monotonic() - began))
    return Filled(data, media_type, name, result.faces, result.hole_ratio, milliseconds)


def faces(data: bytes, model: Model, max_pixels: int, progress: Progress) -> dict[str, Any]:
    """Find the faces in a photo: its upright size, and a box, five points and a score for each face.

    Raises:
        Refusal: the photo can't be read.
    """
    progress("reading", 0.0)
    photo, _ = read_upload(data, max_pixels)
    progress("finding faces", 0.1)
    detector = model.with_faces.detector
    assert detector is not None
    with _memory_errors():
        found = detector.find(photo.rgb)
    rows = [
        {
            "box": [round(x, 2) for x in face.box],
            "points": face.points.round(2).tolist(),
            "score": round(face.score, 4),
        }
        for face in found
    ]
    return {"width": photo.rgb.width, "height": photo.rgb.height, "faces": rows}


class Upload(io.BytesIO):
    """An uploaded file. Messages call it by what it is, and not by its address in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name

    def __repr__(self) -> str:
        return self.name


def read_upload(data: bytes, max_pixels: int) -> tuple[Photo, str]:
    """Read a photo with all that its file carries, and the name of its format.

    Raises:
        Refusal: it is no image, is broken, or has too many pixels.
    """
    _, kind = _header(data, "photo", max_pixels)
    with _reading("photo"):
        return read_photo(Upload(data, "the photo")), kind


def stem(filename: str | None) -> str:
    """The name of the result without suffix, from the name of the photo's file: no folders, no control characters."""
    name = re.split(r"[/\\]", filename or "")[-1]
    name = "".join(letter for letter in name if letter.isprintable()).strip(" .")
    return (name.rpartition(".")[0] or name)[:80].rstrip() or "photo"


def disposition(filename: str) -> str:
    """A Content-Disposition header that saves under this name, also if it is not ASCII."""
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", filename)
    header = f'attachment; filename="{plain}"'
    return header if plain == filename else f"{header}; filename*=UTF-8''{quote(filename, safe='')}"


def _header(data: bytes, what: str, max_pixels: int) -> tuple[tuple[int, int], str]:
    """The size and the format of an image, read from its header."""
    with _reading(what, max_pixels), open_image(Upload(data, f"the {what}"), max_pixels) as image:
        return image.size, image.format or "PNG"


def _hole(form: InpaintForm, photo: Photo, max_pixels: int) -> NDArray[np.bool_]:
    """The hole of a photo, (H, W) bool, as the form marks it."""
    with _memory_errors():
        if form.mask is not None:
            hole = _mask(form.mask, photo.rgb.size, max_pixels)
        elif form.paint is not None:
            hole = painted_hole(photo.original, form.paint)
        else:
            try:
                hole = alpha_hole(photo.original)
            except ValueError as error:
                raise Refusal(400, str(error)) from None
        return grow_hole(~hole if form.invert else hole, form.grow)


def _mask(data: bytes, size: tuple[int, int], max_pixels: int) -> NDArray[np.bool_]:
    (width, height), _ = _header(data, "mask", max_pixels)
    problem = f"the mask is {width}x{height} and the photo {size[0]}x{size[1]}: give a mask of the photo's upright size"
    if (width, height) not in (size, size[::-1]):  # its EXIF orientation may swap the sides
        raise Refusal(400, problem)
    with _reading("mask"):
        hole = read_mask(Upload(data, "file"))
    if hole.shape != (size[1], size[0]):
        raise Refusal(400, problem)
    return hole


def _kind(format_of_photo: str) -> str:
    """The format of the result, for one that keeps the photo's."""
    kind = SAVED_AS.get(format_of_photo, format_of_photo)
    if kind in KINDS and kind in Image.SAVE:
        return kind
    warnings.warn(f"{format_of_photo} can't hold the result as it is: it is saved as PNG", stacklevel=2)
    return "PNG"


def _encoded(image: Image.Image, kind: str, photo: Photo, hole: NDArray[np.bool_]) -> bytes:
    with _memory_errors():
        try:
            return encode_photo(image, kind, photo, hole=hole, name=f"the {kind} file")
        except MemoryError:
            raise
        except Exception:  # Pillow's encoders raise as many kinds of errors as its decoders
            if kind == "PNG":
                raise
            raise Refusal(
                400, f"the result can't be saved as {kind} with what the photo carried: ask for png"
            ) from None


@contextmanager
def _reading(what: str, max_pixels: int = 0) -> Iterator[None]:
    """Turn the errors of decoders into answers. Their own messages may quote the file, so they are left out."""
    try:
        yield
    except TooManyPixelsError:
        raise Refusal(413, f"the {what} has more than {max_pixels:,} pixels, the limit here") from None
    except (JobStoppedError, Refusal):
        raise
    except Exception as error:
        causes = (error, error.__cause__)
        if any(isinstance(cause, MemoryError) for cause in causes):
            raise Refusal(413, TOO_LARGE) from None
        if isinstance(error, UnreadableImageError) and any(isinstance(x, UnidentifiedImageError) for x in causes):
            raise Refusal(415, f"the {what} is no image that this server reads: give {READABLE}") from None
        raise Refusal(400, f"the {what} is broken or cut off, and can't be decoded") from None


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Answer a photo that does not fit into memory."""
    try:
        with memory_errors():
            yield
    except MemoryError:
        raise Refusal(413, TOO_LARGE) from None
