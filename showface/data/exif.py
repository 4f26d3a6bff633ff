"""EXIF data: turn a photo upright, and the data for the upright photo. Broken data costs no photo."""

import warnings

from PIL import ExifTags, Image, ImageOps

# Tags of a TIFF file that describe how its pixels are stored. They would be wrong in another file.
_STORAGE_TAGS = (
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 297, 301),
    *(317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 513, 514, 529, 530, 531, 532),
    *(700, 33723, 34377, 34675),  # XMP, IPTC, Photoshop's own data, and the ICC profile, which is saved by itself
)


def upright(image: Image.Image, name: str) -> Image.Image:
    """An upright copy of a decoded image, without EXIF data. Where that is broken, the pixels are taken as they are."""
    try:
        copy = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parser raises as many kinds of errors as its decoders
        warnings.warn(
            f"the EXIF data of {name} is left out, and the photo not turned, since it can't be read: {error}",
            stacklevel=4,
        )
        copy = image.copy()
    for key in ("exif", "Raw profile type exif"):
        copy.info.pop(key, None)
    return copy


def upright_exif(image: Image.Image, name: str) -> bytes:
    """The image's EXIF data for an upright copy. Broken data is left out: the pixels are good without it."""
    try:
        exif = _copy(image.getexif())
        turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        if turned and ExifTags.IFD.Exif in exif:
            details = exif[ExifTags.IFD.Exif]
            sides = ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight
            if all(side in details for side in sides):
                details[sides[0]], details[sides[1]] = details[sides[1]], details[sides[0]]
        return exif.tobytes() if len(exif) else b""
    except Exception as error:  # Pillow's parser raises as many kinds of errors as its decoders
        warnings.warn(f"the EXIF data of {name} is left out, it can't be read: {error}", stacklevel=4)
        return b""


def _copy(exif: Image.Exif) -> Image.Exif:
    """A copy without the tags of storage, with dicts as directories. Pillow's own belongs to the caller's image."""
    copy = Image.Exif()
    copy.endian = exif.endian
    for tag in exif:
        if tag not in _STORAGE_TAGS:
            copy[tag] = exif[tag]
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if tag in exif:
            copy[tag] = dict(exif.get_ifd(tag))
    details = copy.get(ExifTags.IFD.Exif, {})
    if ExifTags.IFD.Interop in details:
        details[ExifTags.IFD.Interop] = dict(exif.get_ifd(ExifTags.IFD.Interop))
    return copy
