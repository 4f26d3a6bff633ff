"""HEIC photos, as iPhones take them, with the package pillow-heif and without it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from showface.data import FaceFolder, find_images, read_image, read_mask, read_photo, save_photo
from showface.data import images as images_module
from showface.data.images import FORMATS, UnreadableImageError

from support.pictures import save_faces

pillow_heif = pytest.importorskip("pillow_heif")
HOLE = np.zeros((48, 64), dtype=bool)
HOLE[10:20, 30:50] = True


@pytest.fixture(autouse=True)
def _registered():
    assert images_module.register_heif()


@pytest.fixture
def without_package(monkeypatch):
    """As if pillow-heif were not installed."""
    formats = tuple(name for name in FORMATS if name in Image.OPEN and name != "HEIF")
    monkeypatch.setattr(images_module, "register_heif", lambda: False)
    monkeypatch.setattr(images_module, "_formats", lambda: formats)


def smooth(width: int = 64, height: int = 48) -> Image.Image:
    """A picture that compression hardly changes; no two of its turned or mirrored copies are alike."""
    y, x = np.mgrid[:height, :width] / height
    return Image.fromarray(np.stack([90 * x, 160 * y, 40 + 60 * x * y], axis=-1).clip(0, 255).astype(np.uint8))


def assert_near(a: Image.Image, b: Image.Image, levels: int = 6) -> None:
    assert a.size == b.size
    assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= levels


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_photo_is_read_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = orientation, "a phone"
    smooth().save(tmp_path / "in.heic", exif=exif.tobytes(), quality=95, chroma=444)
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    turn = turns[orientation]
    photo = read_photo(tmp_path / "in.heic")
    assert_near(photo.rgb, smooth() if turn is None else smooth().transpose(turn))
    saved = Image.Exif()
    saved.load(photo.exif)
    assert saved.get(ExifTags.Base.Orientation, 1) == 1
    assert saved[ExifTags.Base.Make] == "a phone"


@pytest.mark.parametrize("name", ["out.heic", "out.HEIF", "out.jpg", "out.png", "out.webp"])
def test_what_the_photo_carried_is_saved(tmp_path: Path, name: str) -> None:
    exif, profile = Image.Exif(), bytes(16) + b"RGB " + bytes(108)
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "a phone"
    smooth(48, 64).save(tmp_path / "in.heic", exif=exif.tobytes(), icc_profile=profile, quality=95, chroma=444)
    photo = read_photo(tmp_path / "in.heic")
    filled = photo.rgb.copy()
    filled.paste((255, 0, 0), (30, 10, 50, 20))
    save_photo(filled, tmp_path / name, photo, hole=HOLE)
    with Image.open(tmp_path / name) as written:
        assert written.info["icc_profile"] == profile
        assert written.getexif()[ExifTags.Base.Make] == "a phone"
        assert written.getexif().get(ExifTags.Base.Orientation, 1) == 1
    known = np.where(HOLE[..., None], 0, np.asarray(read_image(tmp_path / name)).astype(int))
    wanted = np.where(HOLE[..., None], 0, np.asarray(photo.rgb).astype(int))
    far_from_hole = np.ones_like(HOLE)
    far_from_hole[2:28, 22:58] = False
    assert np.abs(known - wanted)[far_from_hole].max() <= (0 if name in ("out.png", "out.webp") else 6)
    assert_near(read_image(tmp_path / name).crop((34, 13, 46, 17)), Image.new("RGB", (12, 4), (255, 0, 0)), 12)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    like = smooth().convert(mode)
    if mode != "L":
        like.putalpha(smooth().getchannel(1))
    save_photo(smooth(), tmp_path / "out.heic", read_photo(like), hole=HOLE)
    written = read_photo(tmp_path / "out.heic")
    assert written.mode in ("RGBA", mode)
    if mode != "L":
        wanted = np.where(HOLE, 255, np.asarray(like.getchannel("A")))
        found = np.asarray(written.original.getchannel("A"))
        assert np.abs(found.astype(int) - wanted)[~HOLE].mean() < 8


def test_the_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth().save(tmp_path / "in.heic")
    monkeypatch.setenv("SHOWFACE_MAX_PIXELS", "3000")
    with pytest.raises(UnreadableImageError, match=r"it has 64x48 = 3,072 pixels, and the limit is 3,000"):
        read_image(tmp_path / "in.heic")


def test_folders(tmp_path: Path, showface, folder) -> None:
    """Photos and masks in HEIC are found, filled and used for training."""
    photos, masks = save_faces(tmp_path / "photos", count=2), tmp_path / "masks"
    masks.mkdir()
    for path in find_images(photos):
        image = read_image(path)
        image.save(path.with_suffix(".heic"), quality=95)
        path.unlink()
        mask = Image.new("L", image.size)
        mask.paste(255, (8, 8, 24, 24))
        mask.save(masks / f"{path.stem}.png")
    assert len(FaceFolder(photos)) == 2
    code, _, err = showface("inpaint", "--no-faces", photos, masks, "-o", tmp_path / "out", "--model", folder)
    assert code == 0, err
    results = find_images(tmp_path / "out")
    assert [path.name for path in results] == [path.name for path in find_images(photos)]
    with Image.open(results[0]) as written:
        assert written.format == "HEIF"


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_without_the_package_the_error_names_it(tmp_path: Path, without_package: None, kind: str) -> None:
    path = tmp_path / "in.heic"
    smooth().save(path)
    source = path if kind == "path" else io.BytesIO(path.read_bytes())
    for read in (read_image, read_photo, read_mask):
        with pytest.raises(UnreadableImageError, match=r"pip install 'showface\[heic\]'"):
            read(source)


def test_training_without_the_package_names_it(tmp_path: Path, without_package: None) -> None:
    faces = save_faces(tmp_path / "faces", count=2)
    for path in find_images(faces):
        read_image(path).save(path.with_suffix(".heic"))
    left_out = r"left out 2 unreadable images: .*1\.heic \(.* pip install 'showface\[heic\]'"
    with pytest.warns(UserWarning, match=left_out):
        assert len(FaceFolder(faces)) == 2
    for path in faces.glob("*.png"):
        path.unlink()
    with pytest.raises(UnreadableImageError, match=r"all 2 images are unreadable: .* pip install 'showface\[heic\]'"):
        FaceFolder(faces)


def test_the_app_gives_heic_for_heic(tmp_path: Path) -> None:
    work = pytest.importorskip("showface.app.work")
    assert work._kind("HEIF") == "HEIF"
    assert work.KINDS["HEIF"] == ("image/heic", ".heic")


def test_without_the_package_other_errors_stay(tmp_path: Path, without_package: None) -> None:
    (tmp_path / "in.heic").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match="cannot identify image file"):
        read_image(tmp_path / "in.heic")
