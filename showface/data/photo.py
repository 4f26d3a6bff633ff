"""Read a photo with what it carries, and save a filled photo so that it carries the same."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from showface.data.exif import upright, upright_exif
from showface.data.images import Source, array_to_image, open_image, plain_alpha, read_image, register_heif, source_name
from showface.files import is_one_of, refuse_overwrite, write_atomically

OUTPUT_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000", "PPM")
"""The formats in which results are saved. Others change the size (ICO, ICNS) or known pixels (GIF)."""
_LONGEST_SIDE = {"JPEG": 65535, "WEBP": 16383, "AVIF": 65536}  # in pixels
MAX_DPI = 65535
"""The largest resolution that is kept, since JPEG has 16 bits for it."""

# What each format can hold, as Pillow writes it.
_WITH_ALPHA = frozenset({"PNG", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000"})
_WITH_16_BITS = frozenset({"PNG", "TIFF"})
_WITH_EXIF = frozenset({"JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF"})
_ONLY_RGB = frozenset({"WEBP", "AVIF", "HEIF"})


@dataclass(frozen=True)
class Photo:
    """A photo, and what its file carried.

    Attributes:
        rgb: the upright photo as 8-bit RGB, as `read_image` gives it.
        original: the upright photo in its own mode, such as L, I;16 or RGBA.
        name: the file's name, for messages.
        exif: EXIF data with upright orientation and without a thumbnail; empty if there is none.
        icc_profile: the colour profile; None if there is none. Pixel values are never converted to another profile.
        dpi: the resolution (horizontal, vertical) in dots per inch; None if there is none.
        jpeg: Pillow's options that compress a JPEG as this one was; None for other formats.
    """

    rgb: Image.Image
    original: Image.Image
    name: str = "the photo"
    exif: bytes = b""
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    jpeg: dict[str, Any] | None = None

    @property
    def mode(self) -> str:
        """The mode to save in: L, LA, I;16, RGB or RGBA.

        Black-and-white pixels are saved as L, since a fill has grey levels. Palettes, CMYK and so on become RGB.
        """
        mode, transparent = self.original.mode, "transparency" in self.original.info
        if mode.startswith("I;16"):
            return "I;16"
        if mode in ("1", "L", "I", "F"):
            return "LA" if transparent else "L"
        if mode in ("LA", "La"):
            return "LA"
        return "RGBA" if transparent or mode in ("RGBA", "RGBa", "PA") else "RGB"


def read_photo(source: Source) -> Photo:
    """Read a photo with all that `save_photo` can save again.

    16 bits a sample are kept in greyscale alone, since Pillow has no colours of 16 bits. Colour in PNG and TIFF, and
    greyscale of 32 bits, are read with 8, with a warning.

    Args:
        source: a path, a file open for reading bytes, a PIL image of any mode, or a uint8 array (H, W, 3) or (H, W).

    Raises:
        TypeError, FileNotFoundError, UnreadableImageError, ValueError: as for `read_image`.
    """
    if isinstance(source, np.ndarray):
        source = array_to_image(source)
    if isinstance(source, Image.Image):
        return _photo(source, "the photo")
    name = source_name(source)
    with open_image(source) as image:
        # Only the decoder's tiles say how deep the file is, and they are gone once it is decoded.
        deep = any(";16" in _raw_mode(tile[3]) for tile in getattr(image, "tile", ()))
        image.load()
        return _photo(image, name, deep)


def _raw_mode(arguments: object) -> str:
    """The raw mode in the arguments of the decoder of PNG or TIFF, such as RGB;16B."""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def save_photo(
    image: Image.Image,
    path: str | Path,
    like: Photo | None = None,
    *,
    hole: NDArray[np.bool_] | None = None,
    overwrite: bool = False,
) -> None:
    """Save an image so that it carries what a photo carried, as far as the format of `path` can hold it.

    - Known pixels are the photo's own, with its alpha and its 16 bits: bit for bit in PNG, TIFF, BMP and WebP (which is
      saved lossless). The fill is opaque. A grey photo stays grey: its fill is made grey.
    - EXIF data, colour profile and resolution are kept. The orientation is upright, and a thumbnail is left out.
    - A JPEG made from a JPEG has its quantisation tables and chroma subsampling; any other JPEG has quality 95.

    What the format can't hold is left out, with a warning. The file is written atomically.

    Args:
        image: the filled photo.
        path: the file; its suffix gives the format.
        like: the photo that was filled. None saves only the image.
        hole: (H, W) bool, True where the image was filled. The default is every pixel that differs from `like`.
        overwrite: write over an existing file.

    Raises:
        FileExistsError: the file exists.
        FileNotFoundError: its folder does not exist.
        ValueError: an unknown format, or the image or the hole does not have the photo's size.
    """
    path = Path(path)
    form = output_format(path)
    refuse_overwrite(path, (), overwrite)
    image, options = _prepared(image, form, path.name, like, hole)
    write_atomically(path, lambda temporary: image.save(temporary, format=form, **options))


def encode_photo(
    image: Image.Image,
    form: str,
    like: Photo | None = None,
    *,
    hole: NDArray[np.bool_] | None = None,
    name: str = "the result",
) -> bytes:
    """The bytes of the file that `save_photo` would write. No file is written.

    Args:
        image, like, hole: as for `save_photo`.
        form: Pillow's name of the format, such as "PNG".
        name: what the warning calls the result if the format can't hold what the photo carried.

    Raises:
        ValueError: an unknown format, or the image or the hole does not have the photo's size.
    """
    register_heif()
    Image.init()
    if form not in OUTPUT_FORMATS or form not in Image.SAVE:
        raise ValueError(f"unknown image format {form!r}: use one of {', '.join(OUTPUT_FORMATS)}")
    image, options = _prepared(image, form, name, like, hole)
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def _prepared(
    image: Image.Image, form: str, name: str, like: Photo | None, hole: NDArray[np.bool_] | None
) -> tuple[Image.Image, dict[str, Any]]:
    """The image to save in this format, and Pillow's options for it. Warns of what the format can't hold."""
    options = _options(form)
    if like is not None:
        lost: list[str] = []
        image = _with_known_pixels(image, like, hole, form, lost)
        options |= _carried(like, image.mode, form, lost)
        if lost:
            warnings.warn(f"{name} can't hold what {like.name} carried: {', '.join(lost)}", stacklevel=3)
    return image, options


def output_format(path: str | Path, size: tuple[int, int] = (1, 1)) -> str:
    """Pillow's name of the format in which an image of a size (width, height) is saved at this path, such as "PNG".

    Raises:
        ValueError: an unknown image format, one that can't hold a result, or one that can't hold this size.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    register_heif()
    form = Image.registered_extensions().get(path.suffix.lower(), "")
    ways = "use a name that ends in .png, .jpg, .webp, .tif, .bmp, .avif, .heic, .jp2 or .ppm"
    if not form:
        raise ValueError(f"unknown image format {path.name!r}: {ways}")
    if form not in OUTPUT_FORMATS or form not in Image.SAVE:
        raise ValueError(f"a result can't be saved as {form}, as {path.name!r} asks: {ways}")
    if max(size) > _LONGEST_SIDE.get(form, max(size)):
        raise ValueError(
            f"{form} holds sides of up to {_LONGEST_SIDE[form]} pixels, and the photo is {size[0]}x{size[1]}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    return form


def check_inputs(photo: Path, mask: Path | None, what: str = "photo") -> None:
    """Raise FileNotFoundError if there is no photo (or `what` else it may be), or no mask where one is named."""
    for path, kind in ((photo, what), (mask, "mask")):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"there is no {kind} {path}")


def check_output(path: Path, inputs: Iterable[Path | None], overwrite: bool, own: bool = False) -> bool:
    """Check, before any work starts, that an image can be written to this path. Returns whether to write over it.

    Args:
        path: the output.
        inputs: the files that are read.
        overwrite: write over any file.
        own: the name is the program's own, and no user chose it: write over it, unless it is one of the inputs.

    Raises:
        ValueError: unknown image format.
        FileNotFoundError: the folder does not exist.
        FileExistsError: the file exists, and is not written over.
    """
    files = [other for other in inputs if other is not None]
    output_format(path)
    overwrite = overwrite or (own and not is_one_of(path, files))
    refuse_overwrite(path, files, overwrite)
    return overwrite


def _photo(image: Image.Image, name: str, deep: bool = False) -> Photo:
    original = upright(image, name)
    exif = upright_exif(image, name)
    jpeg = _jpeg_options(image) if isinstance(image, JpegImagePlugin.JpegImageFile) else None
    if original.mode == "I" and image.format == "PNG":  # as older versions of Pillow read 16 bits
        original = Image.fromarray(np.asarray(original).astype(np.uint16))
    if original.mode in ("I", "F") or (deep and not original.mode.startswith("I;16")):
        problem = "has more than 8 bits a sample: only 8 are read, since it is not greyscale of 16 bits"
        warnings.warn(f"{name} {problem}", stacklevel=3)
    return Photo(
        rgb=read_image(original),
        original=original,
        name=name,
        exif=exif,
        icc_profile=image.info.get("icc_profile") or None,
        dpi=_resolution(image),
        jpeg=jpeg,
    )


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    """The resolution in dots per inch, or None if there is none that every format can hold. Files may say anything."""
    dpi = image.info.get("dpi")
    if not dpi:
        return None
    across, down = (float(value) for value in dpi)
    return (across, down) if 0 < across <= MAX_DPI and 0 < down <= MAX_DPI else None  # False for NaN


def _jpeg_options(image: JpegImagePlugin.JpegImageFile) -> dict[str, Any] | None:
    """Options that compress as the image was compressed. None for CMYK, whose tables are for other channels."""
    if image.layers not in (1, 3) or not image.quantization:
        return None
    # -1 is a rare subsampling that Pillow can't write. Full resolution loses nothing.
    sampling = max(0, JpegImagePlugin.get_sampling(image))
    tables = [list(image.quantization[key]) for key in sorted(image.quantization)]
    progressive = bool(image.info.get("progressive"))
    return {"qtables": tables, "subsampling": sampling, "progressive": progressive}


def _options(form: str) -> dict[str, Any]:
    """Pillow's options that lose least."""
    if form in ("JPEG", "AVIF"):
        return {"quality": 95, "subsampling": "4:4:4"}
    if form == "HEIF":
        return {"quality": 95, "chroma": 444}
    # `exact` keeps the colours under transparent pixels.
    return {"lossless": True, "exact": True} if form == "WEBP" else {}


def _carried(like: Photo, mode: str, form: str, lost: list[str]) -> dict[str, Any]:
    """Options that save what the photo carried. What the format can't hold is added to `lost`."""
    options: dict[str, Any] = {}
    if form == "JPEG" and like.jpeg:
        options |= like.jpeg | {"quality": -1}
    if like.dpi:
        options["dpi"] = like.dpi
    if like.exif and (form not in _WITH_EXIF or (form == "JPEG" and len(like.exif) > 65533)):
        lost.append("EXIF data")
    elif like.exif:
        options["exif"] = like.exif
    if like.icc_profile:
        # Bytes 16-19 name the profile's colour space. One for CMYK says nothing about RGB.
        space = like.icc_profile[16:20]
        fits = space != b"CMYK" and (space != b"GRAY" or (mode in ("L", "LA", "I;16") and form not in _ONLY_RGB))
        if fits and form in _WITH_EXIF:  # the same formats
            options["icc_profile"] = like.icc_profile
        else:
            lost.append("colour profile")
    return options


def _with_known_pixels(
    image: Image.Image, like: Photo, hole: NDArray[np.bool_] | None, form: str, lost: list[str]
) -> Image.Image:
    """The image in the photo's mode, or the nearest that the format holds, with the photo's own known samples."""
    fill = read_image(image)
    if fill.size != like.rgb.size:
        raise ValueError(f"the image is {fill.width}x{fill.height}, and the photo {like.rgb.width}x{like.rgb.height}")
    if hole is None:
        hole = (np.asarray(fill) != np.asarray(like.rgb)).any(axis=-1)
    if hole.shape != (fill.height, fill.width) or hole.dtype != np.bool_:
        raise ValueError(f"expected a bool hole {(fill.height, fill.width)}, got {hole.dtype} {hole.shape}")
    mode = like.mode
    if mode in ("LA", "RGBA") and form not in _WITH_ALPHA:
        lost.append("transparency (it becomes white)")
        mode = mode[:-1]
    if mode == "I;16" and form not in _WITH_16_BITS:
        lost.append("16 bits a sample")
        mode = "L"
    if mode == "I;16":
        # 257 = 65535 / 255. The samples of a big-endian file are put in this machine's order.
        known = np.asarray(like.original).astype(np.uint16)
        return Image.fromarray(np.where(hole, np.asarray(fill.convert("L")).astype(np.uint16) * 257, known))
    if mode in ("L", "RGB"):
        known_image = like.rgb
    else:
        known_image = plain_alpha(like.original)
    result = known_image.convert(mode)
    result.info.clear()  # or the old transparent colour of a palette would be saved too
    result.paste(fill.convert(mode), mask=Image.fromarray(hole))
    return result
