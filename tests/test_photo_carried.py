"""What a photo carries: the caller's image stays as it is, and odd values cost no result."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ExifTags, Image

from showface.data import read_photo, save_photo

from support.pictures import noise, save


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_callers_image_stays_as_it_is(tmp_path: Path, suffix: str) -> None:
    """Pillow's EXIF data belongs to the image, so a second read of it must find the same."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.0)}
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExifImageWidth: 32,
        ExifTags.Base.ExifImageHeight: 40,
        ExifTags.IFD.Interop: {1: "R98"},
    }
    with Image.open(save(noise(), tmp_path / f"in.{suffix}", exif=exif)) as image:
        first, second = read_photo(image), read_photo(image)
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 32
    assert first.rgb.size == second.rgb.size == (40, 32)
    assert first.exif == second.exif != b""
    kept = Image.Exif()
    kept.load(first.exif)
    assert kept[ExifTags.Base.Orientation] == 1
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 40
    assert kept.get_ifd(ExifTags.IFD.Interop) == {1: "R98"}
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[2] == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("dpi", [float("nan"), float("inf"), 1e6, 0.0, -72.0])
@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif"])
def test_a_resolution_that_no_format_holds_is_left_out(tmp_path: Path, dpi: float, name: str) -> None:
    image = noise()
    image.info["dpi"] = (300.0, dpi)
    photo = read_photo(image)
    assert photo.dpi is None
    save_photo(photo.rgb, tmp_path / name, photo)
