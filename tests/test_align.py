"""`showface align` and `showface.align_faces`: from photos of any kind to aligned training faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import showface as library
from showface.align import align_photos
from showface.data import ALIGNED_POINTS, find_images, read_image
from showface.faces import Face, default_detector, find_faces

from support.commands import assert_fails, files
from support.pictures import save, save_faces

PORTRAIT = read_image(Path(library.__file__).parent / "assets" / "demo" / "portrait.png")
GREY = (110, 120, 130)


def scene(*faces: tuple[int, int, int], degrees: int = 0, size: tuple[int, int] = (560, 420)) -> Image.Image:
    """A grey photo with the portrait at places (side, left, top), turned as a whole."""
    picture = Image.new("RGB", size, GREY)
    for side, left, top in faces:
        picture.paste(PORTRAIT.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return picture.rotate(degrees, expand=True)


@pytest.fixture
def detected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, float]]:
    """Squares (left, top, side) that are taken for the faces of every photo, so that no photo is searched."""
    squares: list[tuple[float, float, float]] = []

    def find(photo: Image.Image) -> list[Face]:
        return [Face((x, y, x + s, y + s), np.array(ALIGNED_POINTS) * s + (x, y), 1.0) for x, y, s in squares]

    monkeypatch.setattr("showface.align.photos.find_faces", find)
    return squares


@pytest.mark.parametrize("degrees", [0, 90, 180])
def test_faces_come_out_upright_and_in_their_places(degrees: int) -> None:
    (face,) = library.align_faces(scene((240, 150, 90), degrees=degrees))
    assert face.width == face.height
    assert abs(face.width - 240) < 40
    (found,) = find_faces(face)
    assert np.abs(found.points / face.width - ALIGNED_POINTS).max() < 0.06


def test_an_aligned_photo_is_taken_as_it_is() -> None:
    (face,) = library.align_faces(PORTRAIT)
    assert np.array_equal(face, PORTRAIT)
    (face,) = library.align_faces(PORTRAIT, size=128)
    assert np.array_equal(face, PORTRAIT.reduce(PORTRAIT.width // 128))


def test_several_faces_the_largest_first() -> None:
    photo = scene((230, 20, 150), (150, 370, 30))
    sides = [face.width for face in library.align_faces(photo, min_side=64)]
    assert len(sides) == 2
    assert sides[0] > sides[1]
    assert [face.width for face in library.align_faces(photo, min_side=64, size=80)] == [80, 80]
    assert len(library.align_faces(photo, min_side=(sides[0] + sides[1]) // 2)) == 1


def test_small_faces_and_those_at_the_border_are_left_out(detected) -> None:
    photo = scene()
    detected += [(100, 100, 150), (400, 20, 127), (-14, 250, 150), (-20, 10, 150)]
    assert [face.size for face in library.align_faces(photo)] == [(150, 150), (150, 150)]
    with pytest.raises(ValueError, match="at least 1 pixel"):
        library.align_faces(photo, size=0)


def test_the_command(showface, tmp_path: Path) -> None:
    """What is found, what is not, and what can't be read; then again, where all is done."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photos = tmp_path / "photos"
    save(scene((240, 150, 90)).rotate(90, expand=True), photos / "more" / "a.jpg", exif=exif, quality=95)
    save(scene((240, 150, 90)).convert("CMYK"), photos / "b.TIF")
    save(scene(), photos / "none.png")
    (photos / "bad.png").write_bytes(b"no image")
    single = save(scene((60, 150, 90)), tmp_path / "one.webp", lossless=True)
    code, out, err = showface("align", photos, single, "-o", "faces")
    assert code == 1
    assert files("faces") == ["b.png", "more/a.png"]
    assert "faces: 2, photos: 2 aligned, 0 finished before, 1 failed: " in out
    assert f"failed: {photos / 'bad.png'}: cannot read image" in err
    assert f"note: photos without a face (1): {photos / 'none.png'}" in err
    assert f"note: faces left out, smaller than 128 pixels (1): {single}" in err
    assert err.splitlines()[-1] == f"error: 1 of 5 photos failed: {photos / 'bad.png'}"
    for path in find_images("faces"):
        with Image.open(path) as face:
            assert (face.format, face.mode) == ("PNG", "RGB")
            (found,) = default_detector().detect(face.copy())
            assert np.abs(found.points / face.width - ALIGNED_POINTS).max() < 0.06


class TestFiles:
    @pytest.fixture
    def photos(self, tmp_path: Path, detected) -> Path:
        detected += [(0, 0, 22), (18, 18, 20)]
        return save_faces(tmp_path / "photos", count=2)

    def test_a_stopped_run_goes_on(self, photos, tmp_path):
        out = tmp_path / "faces"
        first = align_photos([photos], out, min_side=16)
        assert (first.faces, len(first.aligned)) == (4, 2)
        assert files(out) == ["0-2.png", "0.png", "1-2.png", "1.png"]
        before = (out / "0.png").stat().st_mtime_ns
        (out / "1.png").unlink()
        (out / "1-2.png").unlink()
        again = align_photos([photos], out, min_side=16)
        assert (again.aligned, again.skipped) == ([photos / "1.png"], [photos / "0.png"])
        assert (out / "0.png").stat().st_mtime_ns == before
        assert align_photos([photos], out, min_side=16, overwrite=True).faces == 4
        assert len(files(out)) == 4
        assert (out / "0.png").stat().st_mtime_ns != before

    def test_the_first_face_is_written_last(self, photos, tmp_path, monkeypatch):
        def stop(face, path, overwrite):
            assert path.name == "0-2.png"
            raise KeyboardInterrupt

        monkeypatch.setattr("showface.align.photos.save_photo", stop)
        with pytest.raises(KeyboardInterrupt):
            align_photos([photos], tmp_path / "faces", min_side=16)

    def test_names_that_others_need(self, photos, tmp_path):
        (photos / "1.png").rename(photos / "0-2.png")
        save(Image.open(photos / "0.png"), photos / "0.bmp")
        out, failures = tmp_path / "faces", []
        result = align_photos(
            [photos, photos / "0.png"], out, min_side=16, on_failure=lambda *what: failures.append(what)
        )
        assert files(out) == ["0-2-2.png", "0-2.png", "0-3.png", "0.png"]
        assert list(result.failed) == [photos / "0.png"]
        assert failures == [
            (photos / "0.png", f"{photos / '0.bmp'} gives {out / '0.png'} too: align one of them into another folder")
        ]

    def test_no_file_of_another_photo_is_written_over(self, photos, tmp_path):
        other = save(Image.new("RGB", (8, 8)), tmp_path / "faces" / "0-2.png")
        before = other.read_bytes()
        align_photos([photos / "0.png"], tmp_path / "faces", min_side=16)
        assert files(tmp_path / "faces") == ["0-2.png", "0-3.png", "0.png"]
        assert other.read_bytes() == before

    def test_failures(self, showface, photos, tmp_path):
        assert_fails(showface("align", "nowhere", "-o", "faces"), "there is no photo or folder nowhere")
        assert_fails(showface("align", photos, "-o", photos / "faces"), "must be in separate folders")
        assert_fails(showface("align", photos / "0.png", "-o", photos), "must be in separate folders")
        assert_fails(showface("align", photos, "-o", photos / "0.png"), "0.png is a file")
        (tmp_path / "empty").mkdir()
        assert_fails(showface("align", tmp_path / "empty", "-o", "faces"), "no images (")
        assert len(files(photos)) == 2
