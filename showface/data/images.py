"""Reading and converting images and hole masks."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from showface.data.exif import upright
from showface.data.urls import is_special

POLARITIES = ("white", "black")

# Formats that are only pictures. Left out are interpreters (EPS, PDF, WMF), formats without a signature (TGA), and rare
# ones whose decoders few people test. HEIF, the format of HEIC photos, needs the package pillow-heif.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 200_000_000
"""The largest image that is read, in pixels, unless the environment variable SHOWFACE_MAX_PIXELS says otherwise."""

_lock = threading.Lock()
_readers: list[int | None] = []
"""Pillow's own limit, once for each file that is being read."""

Source = str | os.PathLike[str] | BinaryIO | Image.Image | NDArray[np.uint8]


class UnreadableImageError(OSError):
    """A file exists but cannot be decoded as an image; the message names the file."""


class TooManyPixelsError(UnreadableImageError):
    """An image file has more pixels than the limit. It was not decoded."""


def read_image(source: Source) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF orientation is applied. Greyscale, palette, CMYK and 16-bit images are converted (16-bit values are scaled,
    not clipped), and transparent images are composited on white.

    Args:
        source: a path, a file open for reading bytes, a PIL image of any mode, or a uint8 array (H, W, 3) or (H, W).

    Returns:
        A PIL image of mode RGB.

    Raises:
        TypeError: another type of source, or another array.
        FileNotFoundError: the file does not exist.
        UnreadableImageError: the file is not an image, is broken or truncated, or has too many pixels.
    """
    return _flatten(_load(source), background=255)


def read_mask(source: Source, size: tuple[int, int] | None = None, polarity: str = "white") -> NDArray[np.bool_]:
    """Read a mask as booleans, True = hole.

    Soft edges are cut at one half. Transparent parts of a mask count as known pixels, for either polarity. An
    8-bit mask whose largest value is 1 is read as 0 and 1, with a warning.

    Args:
        source: a path, a file open for reading bytes, a PIL image of any mode, or a uint8 array (H, W, 3) or (H, W).
        size: the wanted `(height, width)`, usually the image's. A mask of another size is resized to the nearest pixel,
            with a warning, but not if only its sides are swapped. None keeps the mask's own size.
        polarity: the colour of the holes, "white" or "black".

    Returns:
        bool array `(H, W)`.

    Raises:
        ValueError: an unknown polarity, a size out of range, or a mask whose sides are swapped.
        TypeError, FileNotFoundError, UnreadableImageError: as for `read_image`.
    """
    if polarity not in POLARITIES:
        raise ValueError(f"polarity must be one of {POLARITIES}, got {polarity!r}")
    image = _load(source)
    name = "the mask" if isinstance(source, Image.Image | np.ndarray) else f"mask {source_name(source)}"
    grey = np.asarray(_flatten(image, background=0 if polarity == "white" else 255).convert("L"))
    if image.mode == "L" and grey.size and grey.max() == 1:
        warnings.warn(f"{name} holds only the values 0 and 1: they are read as black and white", stacklevel=2)
        grey = grey * np.uint8(255)
    white = grey.astype(np.float32) / 255.0
    hole = (white if polarity == "white" else 1.0 - white) >= 0.5
    if polarity == "white" and not hole.any():
        _say_brightest(image, grey, name)
    if size is None or hole.shape == tuple(size):
        return hole
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}")
    own = f"{hole.shape[0]}x{hole.shape[1]}"
    if hole.shape == (width, height):
        raise ValueError(
            f"{name} is {own} (height x width), and the photo {height}x{width}: draw it on the upright photo, as the "
            "photo's EXIF orientation turns it"
        )
    warnings.warn(f"{name} is {own} (height x width), not {height}x{width}: resized with nearest", stacklevel=2)
    resized = Image.fromarray(hole.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized) > 0


def _say_brightest(image: Image.Image, grey: NDArray[np.uint8], name: str) -> None:
    """Say how bright an empty mask is, unless it is black. Masks of 0 and 1 in 16 bits or in colour look black.

    `grey` is what the mask was read as: (H, W), with its transparent parts in black.
    """
    white = 255
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.nan_to_num(np.asarray(image).astype(np.float64))
        white = 65535 if image.mode.startswith("I") else 1 if samples.max(initial=0.0) <= 1 else 255
    else:
        rgb = np.asarray(plain_alpha(image).convert("RGB"))  # drops the alpha
        samples = np.asarray(Image.fromarray(rgb).convert("L"))
        if samples.max(initial=0) > 127:
            why = "what is white in it is transparent, and transparent parts count as known pixels"
            warnings.warn(f"{name} is empty: {why}", stacklevel=3)
            return
        if grey.any() and (rgb.max(axis=-1) - rgb.min(axis=-1)).max() > 32:
            why = f"it is coloured, and the brightest grey level of its colours is {grey.max()}: holes must be white"
            warnings.warn(f"{name} is empty: {why}", stacklevel=3)
            return
    brightest = samples.max(initial=0)
    if brightest > 0:
        why = f"its brightest value is {brightest:g}, and white is {white}, so nothing counts as hole"
        warnings.warn(f"{name} is empty: {why}", stacklevel=3)


def source_name(source: str | os.PathLike[str] | BinaryIO) -> str:
    """The name of an image file in messages: its path, or the `name` of an open file."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "without a name"))


class _ImageFile(io.BufferedReader):
    """A file for Pillow, which reads as many bytes as a header says: this one reserves no more than the file has."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path))
        self._bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(-1 if size is None else size, self._bytes))


@contextmanager
def open_image(source: str | os.PathLike[str] | BinaryIO, limit: int | None = None) -> Iterator[Image.Image]:
    """Open an image file of one of `FORMATS`, and check its size by its header, before it is decoded.

    Any error of Pillow's decoders in the body of `with` becomes an `UnreadableImageError`. They raise much more than
    OSError: SyntaxError, ValueError, RuntimeError, OverflowError, AttributeError, struct.error, ...

    Args:
        source: a path, or a file open for reading bytes.
        limit: the largest number of pixels; by default `max_pixels()`.

    Raises:
        TypeError: the source is neither.
        FileNotFoundError: the file does not exist.
        TooManyPixelsError: the image has more pixels than the limit.
        UnreadableImageError: the file is not an image, or is broken or truncated; or it is no regular file, since
            reading a pipe may wait for ever.
        ValueError: SHOWFACE_MAX_PIXELS is not a positive integer.
    """
    limit = limit or max_pixels()
    if isinstance(source, str | os.PathLike):
        if is_special(source):
            raise UnreadableImageError(f"cannot read image {source_name(source)}: it is no regular file")
    elif not hasattr(source, "read"):
        raise TypeError(
            "an image must be a path, an open file, a PIL image or a uint8 array (H, W, 3), got "
            f"{type(source).__name__}"
            + ("; showface.data.tensor_to_image converts a tensor" if isinstance(source, torch.Tensor) else "")
        )
    try:
        file = _ImageFile(source) if isinstance(source, str | os.PathLike) else nullcontext(source)
        with _without_pillows_limit(), file as opened, Image.open(opened, formats=_formats()) as image:
            if image.width * image.height > limit:
                size = f"{image.width}x{image.height} = {image.width * image.height:,} pixels"
                problem = f"it has {size}, and the limit is {limit:,}; set SHOWFACE_MAX_PIXELS to raise it"
                raise TooManyPixelsError(f"cannot read image {source_name(source)}: {problem}")
            yield image
    except (FileNotFoundError, TooManyPixelsError):
        raise
    except Exception as error:
        reason = "it needs too much memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError) and not register_heif() and _is_heif(source):
            reason = "HEIC photos need the package pillow-heif: pip install 'showface[heic]'"
        raise UnreadableImageError(f"cannot read image {source_name(source)}: {reason}") from error


def max_pixels() -> int:
    """The largest image that is read, in pixels.

    Raises:
        ValueError: SHOWFACE_MAX_PIXELS is not a positive integer.
    """
    text = os.environ.get("SHOWFACE_MAX_PIXELS", str(MAX_PIXELS))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"SHOWFACE_MAX_PIXELS must be a positive number of pixels, got {text!r}")
    return int(text)


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Turn off Pillow's limit, which is lower than ours and has no argument. It also counts while a file is decoded.

    It is a global variable, so it is off in all threads until the last file is read.
    """
    with _lock:
        _readers.append(_readers[0] if _readers else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _lock:
            limit = _readers.pop()
            if not _readers:
                Image.MAX_IMAGE_PIXELS = limit


@cache
def register_heif() -> bool:
    """Let Pillow read and write HEIC photos. Returns False if the package pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _is_heif(source: str | os.PathLike[str] | BinaryIO) -> bool:
    """Whether the file starts as an HEIC photo does: a box `ftyp` with one of its brands."""
    with open(source, "rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
        file.seek(0)
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS


@cache
def _formats() -> tuple[str, ...]:
    """The `FORMATS` that this build of Pillow has."""
    register_heif()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _load(source: Source) -> Image.Image:
    """The decoded, upright image, in its original mode."""
    if isinstance(source, np.ndarray):
        source = array_to_image(source)
    if isinstance(source, Image.Image):
        try:
            source.load()  # it may be opened, but not read
        except (OSError, SyntaxError) as error:
            raise UnreadableImageError(f"cannot read the image: {error}") from error
        return upright(source, "the image")
    with open_image(source) as image:
        image.load()
        return upright(image, source_name(source))


def _flatten(image: Image.Image, background: int) -> Image.Image:
    """Convert any mode to 8-bit RGB, with transparent parts composited on a grey level."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = plain_alpha(image).convert("RGBA")
        below = Image.new("RGBA", rgba.size, (background, background, background, 255))
        return Image.alpha_composite(below, rgba).convert("RGB")
    if image.mode == "LAB":
        raise UnreadableImageError("cannot read an image in LAB colours: save it in RGB first")
    return image if image.mode == "RGB" else image.convert("RGB")


def plain_alpha(image: Image.Image) -> Image.Image:
    """The image without premultiplied alpha, which Pillow converts only to the plain mode with the same bands."""
    plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    return image.convert(plain) if plain else image


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale integer or float greyscale to 8 bits. Pillow's `convert` would clip values at 255."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0)
    peak = float(values.max(initial=0.0))
    if image.mode == "F":
        full = 1.0 if peak <= 1.0 else 255.0 if peak <= 255.0 else 65535.0
    elif image.mode.startswith("I;16"):
        full = 65535.0
    else:
        # A 32-bit image may hold 8-bit or 16-bit data. Decide by its largest value.
        full = 255.0 if peak <= 255.0 else 65535.0
    return np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8)


def array_to_image(array: NDArray[np.uint8]) -> Image.Image:
    """Convert a uint8 array (H, W, 3) or (H, W), not empty, to a PIL image. Raises TypeError for another array."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.shape[2:] == (3,)) or 0 in array.shape:
        raise TypeError(f"an image array must be uint8 (H, W, 3) or (H, W), got {array.dtype} {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """Convert a PIL image to float32 `(3, H, W)` in [-1, 1]. Modes other than RGB go through `read_image`."""
    rgb = np.array(image if image.mode == "RGB" else read_image(image))
    planes = torch.from_numpy(rgb).permute(2, 0, 1).contiguous()
    return planes.to(torch.float32) / 127.5 - 1.0


def tensor_to_image(tensor: torch.Tensor) -> Image.Image:
    """Convert a float tensor `(3, H, W)` or `(1, 3, H, W)` in [-1, 1] to an RGB image, clipped and rounded to 8 bits.

    This inverts `image_to_tensor` exactly.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"expected a tensor (3, H, W) or (1, 3, H, W), got {tuple(tensor.shape)}")
    values = tensor.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the tensor holds NaN or infinite values")
    rgb = ((values + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy())


def mask_to_tensor(hole: NDArray[np.bool_]) -> torch.Tensor:
    """Convert a bool mask `(H, W)`, True = hole, to float32 `(1, H, W)` of 0 and 1.

    Raises:
        ValueError: another dtype or number of dimensions.
    """
    if hole.ndim != 2 or hole.dtype != np.bool_:
        raise ValueError(f"expected a bool array (H, W), got {hole.dtype} of shape {hole.shape}")
    return torch.from_numpy(hole.astype(np.float32))[None]


def square_crop(
    width: int, height: int, scale: float = 1.0, rng: np.random.Generator | None = None
) -> tuple[int, int, int, int]:
    """A square box `(left, top, right, bottom)` with a side of `scale` times the image's shorter side.

    It is placed at random, or in the centre if `rng` is None.
    """
    side = max(1, round(scale * min(width, height)))
    if rng is None:
        left, top = (width - side) // 2, (height - side) // 2
    else:
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return left, top, left + side, top + side


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop an RGB image to the square in its centre and resize it to `size` x `size` (Lanczos, antialiased).

    Raises:
        ValueError: `size` is below 1.
    """
    return resize_box(image, square_crop(image.width, image.height), size)


def resize_box(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    """Resize the part of an RGB image in `box` (left, top, right, bottom) to `size` x `size` with Lanczos.

    Raises:
        ValueError: `size` is below 1, or the box leaves the image.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
