"""What a photo carries comes out again: alpha, depth, EXIF, colour profile, resolution, JPEG quality."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin

from showface.data import UnreadableImageError, read_image, read_mask, read_photo, save_photo
from showface.data.images import MAX_PIXELS, open_image
from showface.data.photo import output_format
from showface.files import refuse_overwrite

from support.pictures import noise, save

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HOLE = np.zeros((40, 32), dtype=bool)
HOLE[8:20, 10:25] = True
EXIF = Image.Exif()
EXIF[ExifTags.Base.Make] = "A camera"
EXIF[ExifTags.Base.Orientation] = 1
EXIF[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "2001:02:03 04:05:06", ExifTags.Base.ISOSpeedRatings: 200}
EXIF[ExifTags.IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.0)}


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image)


def filled(rgb: Image.Image, hole: NDArray[np.bool_] = HOLE) -> Image.Image:
    """A fill as a model makes it: other pixels in the hole, and nowhere else."""
    return Image.fromarray(np.where(hole[..., None], 255 - pixels(rgb), pixels(rgb)))


def round_trip(source: Path, name: str, hole: NDArray[np.bool_] | None = HOLE) -> Image.Image:
    """Read a photo, fill it, save it, and open what was saved."""
    photo = read_photo(source)
    inside = hole if hole is not None else HOLE
    save_photo(filled(photo.rgb, inside), source.with_name(name), photo, hole=hole)
    with Image.open(source.with_name(name)) as image:
        image.load()
        return image


# Known pixels


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("name", ["out.png", "out.tif", "out.webp"])
@pytest.mark.parametrize("given", [True, False], ids=["hole", "differences"])
def test_known_samples_and_alpha_are_kept(tmp_path: Path, mode: str, name: str, given: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 32, 4), dtype=np.uint8)
    values[0, 0] = (1, 2, 3, 0)  # the colours under a transparent pixel are kept too
    image = Image.fromarray(values).convert(mode)
    result = round_trip(save(image, tmp_path / "in.png"), name, HOLE if given else None)
    if name == "out.webp":
        result = result.convert(mode)  # WebP has no grey
    assert result.mode == mode
    assert np.array_equal(pixels(result)[~HOLE], pixels(image)[~HOLE])
    if mode in ("LA", "RGBA"):
        changed = HOLE if given else HOLE & (pixels(result) != pixels(image)).any(-1)
        assert (pixels(result)[changed][:, -1] == 255).all()


def test_a_white_fill_of_a_transparent_hole_is_opaque(tmp_path: Path) -> None:
    """Transparent pixels are white when they are read, so a white fill does not differ: the hole must be named."""
    image = noise().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8)))
    photo = read_photo(save(image, tmp_path / "in.png"))
    save_photo(photo.rgb, tmp_path / "out.png", photo, hole=HOLE)
    assert read_photo(tmp_path / "out.png").original.getextrema()[3] == (255, 255)


@pytest.mark.parametrize(("source", "name"), [("in.png", "out.png"), ("in.tif", "out.tif"), ("in.tif", "out.png")])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_are_kept(tmp_path: Path, source: str, name: str, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 32)).astype(order)
    mode = "I;16B" if order == ">u2" and source.endswith("tif") else "I;16"
    raw = values.tobytes() if mode == "I;16B" else values.astype("<u2").tobytes()
    image = Image.frombytes(mode, (32, 40), raw)
    result = round_trip(save(image, tmp_path / source), name)
    assert result.mode == "I;16"
    assert np.array_equal(pixels(result)[~HOLE], values[~HOLE])
    photo = read_photo(tmp_path / source)
    assert np.array_equal(pixels(result)[HOLE] // 257, 255 - pixels(photo.rgb)[HOLE][:, 0])


def test_16_bit_colour_is_read_with_a_warning(tmp_path: Path) -> None:
    rgb = np.zeros((4, 4, 3), dtype=">u2")
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "deep.png"), rgb.astype(np.uint16))
    with pytest.warns(UserWarning, match="deep.png has more than 8 bits a sample: only 8 are read"):
        assert read_photo(tmp_path / "deep.png").mode == "RGB"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_read_with_a_warning(tmp_path: Path, mode: str) -> None:
    path = save(noise().convert(mode), tmp_path / "deep.tif")
    for source in (path, noise().convert(mode)):
        with pytest.warns(UserWarning, match="more than 8 bits a sample: only 8 are read") as said:
            assert read_photo(source).mode == "L"
        assert said[0].filename == __file__


# In these, "16" is in Pillow's numbers of bytes: of a row (2160), of the strip (16112), and of the file (11619).
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("a.bmp", (4, 720), {}), ("a.tif", (98, 40), {"compression": "tiff_lzw"}), ("a.jp2", (85, 40), {})],
)
def test_8_bits_are_read_without_a_warning(
    tmp_path: Path, name: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    path = save(noise(*size), tmp_path / name, **options)
    with Image.open(path) as image:
        assert "16" in str(image.tile)
    assert read_photo(path).mode == "RGB"


@pytest.mark.parametrize(("mode", "wanted"), [("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("I", "L"), ("F", "L")])
def test_other_modes_become_the_nearest_one(tmp_path: Path, mode: str, wanted: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* has more than 8 bits")  # of I and F
        photo = read_photo(save(noise().convert(mode), tmp_path / "in.tif"))
    save_photo(filled(photo.rgb), tmp_path / "out.png", photo, hole=HOLE)
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == wanted
        assert np.array_equal(pixels(result.convert("RGB"))[~HOLE], pixels(photo.rgb)[~HOLE])


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.where(HOLE, 1, 0).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    result = round_trip(save(image, tmp_path / "in.png", transparency=0), "out.png")
    assert result.mode == "RGBA"
    assert result.getpixel((0, 0)) == (10, 20, 30, 0)
    assert result.getpixel((12, 10)) == (215, 205, 195, 255)


def test_what_a_format_cannot_hold_is_named(tmp_path: Path) -> None:
    path = save(noise().convert("RGBA"), tmp_path / "in.png", icc_profile=SRGB, exif=EXIF.tobytes())
    with pytest.warns(UserWarning, match=r"out.bmp can't hold .*transparency .*EXIF data, colour profile"):
        round_trip(path, "out.bmp")
    deep = save(Image.fromarray(np.zeros((40, 32), dtype=np.uint16)), tmp_path / "deep.png")
    with pytest.warns(UserWarning, match="16 bits"):
        assert round_trip(deep, "out.jpg").mode == "L"
    cmyk = save(noise().convert("CMYK"), tmp_path / "cmyk.jpg", icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 108)
    with pytest.warns(UserWarning, match="colour profile"):
        assert "icc_profile" not in round_trip(cmyk, "out2.jpg").info


# What lies beside the pixels


@pytest.mark.parametrize("source", ["in.jpg", "in.png", "in.tif", "in.webp"])
@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif", "out.webp"])
def test_exif_profile_and_resolution(tmp_path: Path, source: str, name: str) -> None:
    path = save(noise(), tmp_path / source, exif=EXIF.tobytes(), icc_profile=SRGB, dpi=(300, 300))
    result = round_trip(path, name)
    assert result.info["icc_profile"] == SRGB
    exif = result.getexif()
    assert exif[ExifTags.Base.Make] == "A camera"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2001:02:03 04:05:06"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 200
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (1.0, 2.0, 3.0)
    if "webp" not in source + name:
        assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_the_orientation_is_applied_once(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ExifImageWidth: 32, ExifTags.Base.ExifImageHeight: 40}
    path = save(noise(), tmp_path / "in.png", exif=exif)
    upright = read_image(path)
    hole = HOLE if upright.size == (32, 40) else HOLE.T.copy()
    result = round_trip(path, name, hole)
    assert result.getexif()[ExifTags.Base.Orientation] == 1
    details = result.getexif().get_ifd(ExifTags.IFD.Exif)
    assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == result.size
    assert read_image(result).size == upright.size
    if name == "out.png":
        assert np.array_equal(pixels(read_image(result))[~hole], pixels(upright)[~hole])


def test_a_thumbnail_is_left_out(tmp_path: Path) -> None:
    """It would show the photo before it was filled."""
    thumbnail = noise(8, 8)
    save(thumbnail, tmp_path / "small.jpg")
    small = (tmp_path / "small.jpg").read_bytes()
    # Two directories of EXIF, written by hand because Pillow can't: the second one holds the thumbnail.
    first = struct.pack("<HHHIII", 1, 0x010F, 2, 4, int.from_bytes(b"Cam\0", "little"), 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(small), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + small
    path = save(noise(), tmp_path / "in.jpg", exif=exif)
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(small)
    result = round_trip(path, "out.jpg")
    assert result.getexif()[ExifTags.Base.Make] == "Cam"
    assert not result.getexif().get_ifd(ExifTags.IFD.IFD1)
    assert small[100:] not in (tmp_path / "out.jpg").read_bytes()


def test_broken_exif_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(noise(), tmp_path / "in.png", exif=EXIF.tobytes())

    def fail(self: Image.Exif, offset: int = 8) -> bytes:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    with pytest.warns(UserWarning, match="EXIF data of .*in.png is left out"):
        photo = read_photo(path)
    assert photo.exif == b""
    assert np.array_equal(pixels(photo.rgb), pixels(noise()))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_that_is_none(tmp_path: Path, suffix: str) -> None:
    path = save(noise(), tmp_path / f"in.{suffix}", exif=b"Exif\0\0garbage!")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        photo = read_photo(path)
        rgb = read_image(path)
    # Pillow reads such data of a JPEG as empty.
    assert [Path(warning.filename).name for warning in said] == ["test_photo.py"] * (0 if suffix == "jpg" else 2)
    assert all(f"EXIF data of {path} is left out" in str(warning.message) for warning in said)
    assert photo.exif == b""
    with Image.open(path) as stored:
        assert np.array_equal(pixels(photo.rgb), pixels(stored))
        assert np.array_equal(pixels(rgb), pixels(stored))


# JPEG


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [40, 75, 98])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_keeps_its_compression(tmp_path: Path, mode: str, quality: int, subsampling: int) -> None:
    smooth = noise(5, 4).resize((32, 40), Image.Resampling.BICUBIC).convert(mode)
    path = save(smooth, tmp_path / "in.jpg", quality=quality, subsampling=subsampling)
    result = round_trip(path, "out.jpg")
    with Image.open(path) as before:
        assert isinstance(result, JpegImagePlugin.JpegImageFile)
        assert result.mode == mode
        assert result.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(result) == JpegImagePlugin.get_sampling(before)
        far = np.ones_like(HOLE)
        far[:32, :] = False  # blocks of 16 pixels that the hole does not touch
        change = np.abs(pixels(result)[far].astype(int) - pixels(before)[far])
    assert change.mean() < 2.5  # chroma that is halved twice changes most


def test_a_jpeg_of_a_png_has_quality_95(tmp_path: Path) -> None:
    result = round_trip(save(noise(), tmp_path / "in.png"), "out.jpg")
    noise().save(tmp_path / "95.jpg", quality=95)
    with Image.open(tmp_path / "95.jpg") as wanted:
        assert result.quantization == wanted.quantization
    assert JpegImagePlugin.get_sampling(result) == 0


# Writing


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = save(noise(), tmp_path / "in.png")
    before = path.read_bytes()
    photo = read_photo(path)
    with pytest.raises(FileExistsError, match=r"in.png exists already: give -o another name, or --overwrite"):
        save_photo(filled(photo.rgb), path, photo)
    assert path.read_bytes() == before
    link = tmp_path / "link.png"
    link.symlink_to(path)
    with pytest.raises(FileExistsError, match=r"link.png is one of the inputs"):
        refuse_overwrite(link, [tmp_path / "missing.png", path], overwrite=False)
    refuse_overwrite(tmp_path / "new.png", [path], overwrite=False)
    save_photo(filled(photo.rgb), path, photo, overwrite=True)
    assert np.array_equal(pixels(read_image(path)), pixels(filled(photo.rgb)))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["in.png", "link.png"]


def test_bad_arguments(tmp_path: Path) -> None:
    photo = read_photo(noise())
    with pytest.raises(ValueError, match="32x40"):
        save_photo(noise(8, 8), tmp_path / "out.png", photo)
    with pytest.raises(ValueError, match="bool hole"):
        save_photo(photo.rgb, tmp_path / "out.png", photo, hole=HOLE.T)
    with pytest.raises(ValueError, match=r"unknown image format 'out.xyz'"):
        output_format(tmp_path / "out.xyz")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        output_format(tmp_path / "missing" / "out.png")
    assert not list(tmp_path.iterdir())


def test_an_image_by_itself(tmp_path: Path) -> None:
    save_photo(noise(), tmp_path / "out.png")
    assert np.array_equal(pixels(read_image(tmp_path / "out.png")), pixels(noise()))


# Limits


def test_the_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(noise(), tmp_path / "in.png")
    monkeypatch.setenv("SHOWFACE_MAX_PIXELS", "1279")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    wanted = r"in.png: it has 32x40 = 1,280 pixels, and the limit is 1,279; set SHOWFACE_MAX_PIXELS to raise it"
    for read in (read_image, read_mask, read_photo):
        with pytest.raises(UnreadableImageError, match=wanted):
            read(path)
    monkeypatch.undo()
    monkeypatch.setenv("SHOWFACE_MAX_PIXELS", "1280")
    assert read_image(path).size == (32, 40)
    for text in ("many", "0", "-1", ""):
        monkeypatch.setenv("SHOWFACE_MAX_PIXELS", text)
        with pytest.raises(ValueError, match="SHOWFACE_MAX_PIXELS must be a positive number of pixels"):
            read_image(path)


@pytest.mark.parametrize("name", ["large.png", "large.tif", "large.gif"])
def test_pillows_own_limit_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Neither for the header nor while decoding. Afterwards it is as the program set it."""
    path = save(noise().convert("L"), tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    photo = read_photo(path)
    assert photo.rgb.size == (32, 40)
    with open_image(path), open_image(path):
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(UnreadableImageError):
        read_image(save(noise(), tmp_path / "x.tga"))
    assert Image.MAX_IMAGE_PIXELS == 100
    assert MAX_PIXELS == 200_000_000


@pytest.mark.parametrize("name", ["x.eps", "x.pdf", "x.tga", "x.ico"])
def test_formats_that_are_not_opened(tmp_path: Path, name: str) -> None:
    path = save(noise(), tmp_path / name)
    with pytest.raises(UnreadableImageError, match=name):
        read_photo(path)


@pytest.mark.parametrize("error", [RuntimeError, OverflowError, AttributeError, struct.error, KeyError, TypeError])
def test_any_error_of_a_decoder_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    path = save(noise(), tmp_path / "in.tif")

    def fail(self: Image.Image) -> None:
        raise error("inside the decoder")

    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", fail)
    for read in (read_image, read_mask, read_photo):
        with pytest.raises(UnreadableImageError, match=r"cannot read image .*in.tif: .*inside the decoder"):
            read(path)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "1", "P"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_a_turned_photo_is_upright_in_its_own_mode_too(tmp_path, mode, suffix):
    colours = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    grey = Image.fromarray(colours).convert("L")
    image = {"I;16": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "LA": grey.convert("LA")}.get(mode)
    image = image or Image.fromarray(colours).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    if (mode, suffix) == ("I;16", ".webp"):
        pytest.skip("WebP has 8 bits")
    try:
        image.save(tmp_path / f"photo{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    except OSError:
        pytest.skip(f"{suffix} has no mode {mode}")
    photo = read_photo(tmp_path / f"photo{suffix}")
    assert photo.rgb.size == photo.original.size == (24, 20)
    upright = read_image(image).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(photo.rgb), np.asarray(upright))
    assert np.array_equal(np.asarray(read_image(tmp_path / f"photo{suffix}")), np.asarray(upright))
    assert ExifTags.Base.Orientation not in photo.original.getexif()
    hole = np.zeros((20, 24), dtype=np.bool_)
    hole[:5] = True
    save_photo(photo.rgb, tmp_path / f"out{suffix}", photo, hole=hole)
    again = read_photo(tmp_path / f"out{suffix}")
    assert np.array_equal(np.asarray(again.rgb), np.asarray(photo.rgb))
