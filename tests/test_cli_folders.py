"""The commands `inpaint` and `mask`: marks of other kinds, folders of photos, and files that are not overwritten."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from showface.batch import MaskFolder, Shard, fill_folder
from showface.data import Photo, painted_hole, read_image

from support.commands import Filled, assert_fails, files
from support.pictures import save, save_faces

BOX = (10, 10, 29, 24)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one of them in a folder of its own."""
    save_faces(tmp_path / "photos", count=3, side=50)
    (tmp_path / "photos" / "more").mkdir()
    (tmp_path / "photos" / "2.png").rename(tmp_path / "photos" / "more" / "2.png")
    return tmp_path / "photos"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A mask of its own for each photo, in other formats than theirs."""
    for index, name in enumerate(("0.png", "1.bmp", "more/2.png")):
        image = Image.new("L", (50, 50))
        ImageDraw.Draw(image).rectangle((10, 10, 20 + index, 24), fill=255)
        save(image, tmp_path / "masks" / name)
    return tmp_path / "masks"


def box_mask(path: Path) -> Path:
    image = Image.new("L", (50, 50))
    ImageDraw.Draw(image).rectangle(BOX, fill=255)
    return save(image, path)


def changed(photo: Path, result: Path | str) -> np.ndarray:
    return (np.asarray(read_image(photo)) != np.asarray(read_image(result))).any(-1)


class TestMarks:
    def test_paint(self, showface, folder, photos):
        photo = Image.open(photos / "0.png").point(lambda value: min(value, 200))
        ImageDraw.Draw(photo).rectangle(BOX, fill="white")
        photo.save(photos / "painted.png")
        code, out, err = showface(
            "inpaint", "--no-faces", photos / "painted.png", "--paint", "white", "-o", "r.png", "--model", folder
        )
        assert (code, err) == (0, "")
        hole = painted_hole(photo, "white")
        assert f"hole: {hole.mean():.1%} of 50x50" in out
        assert not (changed(photos / "painted.png", "r.png") & ~hole).any()
        assert not painted_hole(read_image("r.png"), "white").any()

    def test_alpha(self, showface, folder, photos):
        photo = Image.open(photos / "0.png").convert("RGBA")
        alpha = Image.new("L", photo.size, 255)
        ImageDraw.Draw(alpha).rectangle(BOX, fill=0)
        photo.putalpha(alpha)
        photo.save(photos / "erased.png")
        showface("inpaint", "--no-faces", photos / "erased.png", "--alpha", "-o", "r.png", "--model", folder)
        result = np.asarray(Image.open("r.png"))
        assert result.shape == (50, 50, 4)
        assert (result[..., 3] == 255).all()
        known = np.asarray(alpha) == 255
        assert np.array_equal(result[known], np.asarray(photo)[known])

    def test_invert_and_grow(self, showface, folder, photos, tmp_path):
        mask = box_mask(tmp_path / "mask.png")
        inverse = save(Image.open(mask).point(lambda value: 255 - value), tmp_path / "inverse.png")
        common = ("--model", folder, "--grow", 3)
        _, out, _ = showface("inpaint", "--no-faces", photos / "0.png", mask, "-o", "a.png", *common)
        showface("inpaint", "--no-faces", photos / "0.png", inverse, "--invert", "-o", "b.png", *common)
        assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
        assert "hole: 12.0%" not in out
        rows, columns = np.nonzero(changed(photos / "0.png", "a.png"))
        assert (rows.min(), columns.min()) == (7, 7)

    def test_what_the_photo_carried_comes_out(self, showface, folder, photos, tmp_path):
        exif = Image.Exif()
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "A camera", 6
        Image.open(photos / "0.png").save(tmp_path / "p.jpg", exif=exif, dpi=(240, 240), quality=60)
        showface(
            "inpaint", "--no-faces", tmp_path / "p.jpg", box_mask(tmp_path / "m.png"), "-o", "r.jpg", "--model", folder
        )
        with Image.open("r.jpg") as result, Image.open(tmp_path / "p.jpg") as before:
            assert dict(result.getexif()) == {ExifTags.Base.Make: "A camera", ExifTags.Base.Orientation: 1}
            assert result.info["dpi"] == (240, 240)
            assert result.quantization == before.quantization

    def test_failures(self, showface, folder, photos, masks, tmp_path):
        photo, mask = photos / "0.png", masks / "0.png"

        def run(*arguments):
            return showface("inpaint", "--no-faces", photo, *arguments, "-o", "r.png", "--model", folder)

        assert_fails(run(), "mark the hole in one way")
        assert_fails(run(mask, "--alpha"), "mark the hole in one way")
        assert_fails(run("--paint", "white", "--alpha"), "mark the hole in one way")
        assert_fails(run(mask, "--mask", mask), "give the mask once")
        assert_fails(run("--paint", "blurple"), "unknown color specifier: 'blurple'")
        assert_fails(run("--alpha"), "no transparency")
        assert_fails(run(masks), "is a folder of masks, but")
        assert run(mask, "--grow", "-1")[0] == 2  # told by the parser


@pytest.mark.parametrize("suffix", ["gif", "jp2", "ppm", "pgm", "pbm"])
def test_a_folder_of_masks_in_formats_of_single_masks(tmp_path, suffix):
    mask = save(Image.new("1" if suffix == "pbm" else "L", (8, 8)), tmp_path / "masks" / f"a.{suffix}")
    assert MaskFolder(tmp_path / "masks", tmp_path / "photos")(tmp_path / "photos" / "a.png") == mask


class TestOverwriting:
    def test_nothing_is_overwritten_unasked(self, showface, folder, photos, masks):
        photo, mask = photos / "0.png", masks / "0.png"
        before = photo.read_bytes(), mask.read_bytes()
        common = ("inpaint", "--no-faces", photo, mask, "--model", folder, "-o")
        for target in (photo, mask):
            assert_fails(showface(*common, target), f"{target} is one of the inputs: give -o another name")
        assert (photo.read_bytes(), mask.read_bytes()) == before
        assert showface(*common, "r.png")[0] == 0
        code, _, err = showface(*common, "r.png")
        assert (code, err) == (1, "error: r.png exists already: give -o another name, or --overwrite\n")
        assert showface(*common, "r.png", "--overwrite")[0] == 0
        assert showface(*common, photo, "--overwrite")[0] == 0
        assert photo.read_bytes() != before[0]

    def test_the_programs_own_names_are(self, showface, folder, faces):
        for command, own in ((("demo",), "showface-demo.png"), (("memory", faces), "showface-memory.png")):
            for _ in range(2):
                assert showface(*command, "--model", folder)[0] == 0
            code, _, err = showface(*command, "--model", folder, "-o", f"./{own}.png")
            assert code == 0
            code, _, err = showface(*command, "--model", folder, "-o", f"{own}.png")
            assert code == 1
            assert "exists already" in err
            assert showface(*command, "--model", folder, "-o", f"{own}.png", "--overwrite")[0] == 0

    def test_an_input_of_the_programs_own_name_is_not(self, showface, folder, photos, masks):
        """Nor is a file of that name which -o names."""
        own = Path("showface-mask.png")
        (masks / "0.png").rename(own)
        before = own.read_bytes()
        code, _, err = showface("mask", photos / "0.png", own)
        assert (code, err) == (
            1,
            "error: showface-mask.png is one of the inputs: give -o another name, or --overwrite\n",
        )
        code, _, err = showface("mask", photos / "0.png", masks / "1.bmp", "-o", own)
        assert (code, err) == (1, "error: showface-mask.png exists already: give -o another name, or --overwrite\n")
        assert own.read_bytes() == before
        assert showface("mask", photos / "0.png", masks / "1.bmp")[0] == 0
        (photos / "0.png").rename("showface-memory.png")
        code, _, err = showface("memory", ".", "--model", folder)
        assert code == 1
        assert "showface-memory.png is one of the inputs" in err


class TestMaskCommand:
    def test_missing_files_are_named(self, showface, photos, masks):
        assert_fails(showface("mask", "no.png", masks / "0.png"), "there is no photo no.png")
        assert_fails(showface("mask", photos / "0.png", "no.png", "-o", "x"), "there is no mask no.png")

    def test_draws_and_describes(self, showface, photos, masks):
        code, out, err = showface("mask", photos / "0.png", masks / "0.png", "--grow", 1)
        assert (code, err) == (0, "")
        assert "hole: 8.7% of 50x50 in 1 piece; white in the mask is the hole, grown by 1 pixels" in out
        sheet = np.asarray(Image.open("showface-mask.png"))
        assert sheet.shape == (50, 108, 3)
        assert np.array_equal(sheet[:, :50], np.asarray(Image.open(photos / "0.png")))
        known = sheet[:, :50] == sheet[:, 58:]
        assert known[40:].all()
        assert not known[15, 15].all()
        assert showface("mask", photos / "0.png", masks / "0.png")[0] == 0  # over its own name

    def test_says_what_looks_wrong(self, showface, photos, tmp_path):
        mask = box_mask(tmp_path / "m.png")
        code, out, err = showface("mask", photos / "0.png", mask, "--mask-polarity", "black", "-o", "x.png")
        assert code == 0
        assert err.startswith("note: the mask looks inverted")
        assert "black in the mask is the hole" in out
        save(Image.new("L", (30, 60)), mask)
        _, out, err = showface("mask", photos / "0.png", mask, "-o", "y.png")
        notes = err.splitlines()
        assert "the hole is empty" in notes[0]
        assert "the mask is 30x60, the photo 50x50: it is stretched" in notes[1]
        assert "in 0 pieces" in out

    def test_faces_are_drawn_if_a_detector_is_there(self, showface, photos, masks, monkeypatch):
        detector = ModuleType("showface.faces")
        detector.find_faces = lambda photo: [SimpleNamespace(box=(5, 30, 20, 45), points=np.array([(30, 40)]))]
        monkeypatch.setitem(sys.modules, "showface.faces", detector)
        _, out, _ = showface("mask", photos / "0.png", masks / "0.png")
        assert "faces seen before filling: 1" in out
        marked = Image.open("showface-mask.png").crop((58, 0, 108, 50))
        assert marked.getpixel((5, 37)) == marked.getpixel((30, 40)) == (30, 200, 255)


class TestFolders:
    def test_masks_by_name(self, showface, folder, photos, masks):
        code, out, err = showface("inpaint", "--no-faces", photos, "--mask", masks, "-o", "out", "--model", folder)
        assert (code, err) == (0, "")
        assert f"3 filled, 0 finished before, 0 failed: {Path('out').resolve()}" in out
        assert files("out") == files(photos) == ["0.png", "1.png", "more/2.png"]
        for name, mask in zip(files(photos), files(masks), strict=True):
            hole = np.asarray(Image.open(masks / mask)) > 0
            found = changed(photos / name, Path("out", name))
            assert found.any()
            assert not (found & ~hole).any()

    def test_photos_with_an_empty_hole_are_copied(self, showface, folder, photos, masks):
        Image.new("L", (50, 50)).save(masks / "1.bmp")
        code, out, err = showface("inpaint", "--no-faces", photos, "--mask", masks, "-o", "out", "--model", folder)
        assert code == 0
        assert err.splitlines() == ["note: 1.png: the hole is empty, the photo is copied"]
        assert "2 filled, 1 copied, 0 finished before, 0 failed" in out
        assert not changed(photos / "1.png", Path("out/1.png")).any()

    def test_one_mask_for_all_is_as_photo_by_photo(self, showface, folder, photos, tmp_path):
        mask = box_mask(tmp_path / "m.png")
        assert showface("inpaint", "--no-faces", photos, mask, "-o", "out", "--model", folder)[0] == 0
        showface("inpaint", "--no-faces", photos / "1.png", mask, "-o", "one.png", "--model", folder)
        assert np.array_equal(*(np.asarray(Image.open(name)) for name in ("out/1.png", "one.png")))

    def test_paint(self, showface, folder, photos):
        for name in files(photos):
            photo = Image.open(photos / name).point(lambda value: min(value, 200))
            ImageDraw.Draw(photo).rectangle(BOX, fill="red")
            photo.save(photos / name)
        assert showface("inpaint", "--no-faces", photos, "--paint", "red", "-o", "out", "--model", folder)[0] == 0
        for name in files("out"):
            assert not painted_hole(read_image(Path("out", name)), "red").any()

    def test_finished_photos_are_skipped(self, showface, folder, photos, masks):
        again = ("inpaint", "--no-faces", photos, "--mask", masks, "-o", "out", "--model", folder)
        showface(*again)
        Path("out/1.png").unlink()
        Path("out/0.png").write_bytes(b"mine")
        _, out, _ = showface(*again)
        assert "1 filled, 2 finished before, 0 failed" in out
        assert Path("out/0.png").read_bytes() == b"mine"
        _, out, _ = showface(*again, "--overwrite")
        assert "3 filled, 0 finished before" in out
        assert Path("out/0.png").read_bytes() != b"mine"

    def test_failures_are_named_and_the_others_go_on(self, showface, folder, photos, masks):
        (photos / "1.png").write_bytes(b"no image")
        save(Image.new("RGB", (50, 50)), photos / "without.png")
        save(Image.new("L", (50, 50)), masks / "0.bmp")
        code, out, err = showface("inpaint", "--no-faces", photos, "--mask", masks, "-o", "out", "--model", folder)
        assert code == 1
        assert "1 filled, 0 finished before, 3 failed" in out
        lines = err.splitlines()
        assert lines[0].startswith("failed: 0.png: there are several masks 0.*")
        assert lines[1].startswith("failed: 1.png: cannot read image")
        assert lines[2].startswith("failed: without.png: there is no mask without.*")
        assert lines[3] == "error: 3 of 4 photos failed: 0.png, 1.png, without.png"
        assert files("out") == ["more/2.png"]

    def test_shards_are_the_whole_folder_once(self, showface, folder, photos, masks):
        common = ("inpaint", "--no-faces", photos, "--mask", masks, "-o", "out", "--model", folder, "--shard")
        _, out, _ = showface(*common, "1/2")
        assert "2 filled, 0 finished before, 0 failed" in out
        assert files("out") == ["0.png", "more/2.png"]
        _, out, _ = showface(*common, "1/2")
        assert "0 filled, 2 finished before" in out
        _, out, _ = showface(*common, "2/2")
        assert "1 filled, 0 finished before" in out
        assert files("out") == files(photos)
        code, out, _ = showface(*common, "9/9")  # more shards than photos
        assert code == 0
        assert "0 filled, 0 finished before" in out

    @pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "2", "a/b", "1/", "-1/2"])
    def test_wrong_shards(self, showface, folder, photos, masks, shard):
        common = ("inpaint", "--no-faces", photos, "--mask", masks, "-o", "out", "--model", folder)
        assert_fails(
            showface(*common, f"--shard={shard}"), f"a shard must be I/N with 1 <= I <= N, such as 1/4, got {shard}"
        )

    def test_a_single_photo_has_no_shards(self, showface, folder, photos, masks):
        result = showface("inpaint", photos / "0.png", masks / "0.png", "-o", "r.png", "--model", folder, "--shard=1/2")
        assert_fails(result, "--shard does not belong to one photo")

    def test_bad_arguments(self, showface, folder, photos, masks):
        def run(mask, out="out", *more):
            return showface("inpaint", "--no-faces", photos, "--mask", mask, "-o", out, "--model", folder, *more)

        assert_fails(run("nowhere"), "there is no mask nowhere")
        assert_fails(run(masks, photos), "must be in separate folders")
        assert_fails(run(masks, photos / "out"), "must be in separate folders")
        assert_fails(run(masks, masks), "must be in separate folders")
        assert_fails(run(photos / "0.png"), "must be in separate folders")
        assert_fails(run(masks, folder / "config.json"), "must be one too, but")
        assert_fails(run(masks, "out", "--size", 3), "size must be at least 16")
        assert_fails(run(masks, "out", "--mask-polarity", "blue"), "got 'blue'")
        (photos.parent / "empty").mkdir()
        assert_fails(
            showface("inpaint", "--no-faces", photos.parent / "empty", masks, "-o", "out", "--model", folder),
            "no images (",
        )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_are_disjoint_and_equal(count):
    photos = [Path(f"{index}.png") for index in range(20)]
    shards = [Shard(index, count)(photos) for index in range(1, count + 1)]
    assert sorted(photo for shard in shards for photo in shard) == sorted(photos)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def all_hole(path: Path, photo: Photo) -> np.ndarray:
    return np.ones((photo.rgb.height, photo.rgb.width), dtype=bool)


def unchanged(work: Sequence[tuple[Image.Image, np.ndarray]]) -> list[Filled]:
    return [Filled(photo) for photo, _ in work]


def test_only_one_photo_is_in_memory(photos, tmp_path):
    """Photos of earlier steps can be freed: nothing refers to them."""
    seen: list[weakref.ref[Image.Image]] = []

    def find_hole(path, photo):
        gc.collect()
        assert sum(ref() is not None for ref in seen) <= 1  # the last one, until its variable is set again
        seen.append(weakref.ref(photo.rgb))
        return all_hole(path, photo)

    steps: list[tuple[int, int]] = []
    result = fill_folder(photos, tmp_path / "out", find_hole, unchanged, progress=lambda *step: steps.append(step))
    assert [path.as_posix() for path in result.filled] == ["0.png", "1.png", "more/2.png"]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert result.faces == 3


def test_photos_are_filled_in_batches(photos, tmp_path):
    sizes = []

    def fill(work):
        sizes.append(len(work))
        return unchanged(work)

    result = fill_folder(photos, tmp_path / "out", all_hole, fill, batch=2)
    assert sizes == [2, 1]
    assert len(result.filled) == 3


def test_a_bad_photo_does_not_spoil_its_batch(photos, tmp_path):
    bad = np.asarray(Image.open(photos / "1.png"))

    def fill(work):
        if any(np.array_equal(np.asarray(photo), bad) for photo, _ in work):
            raise ValueError("this one is bad")
        return [Filled(photo, 0) for photo, _ in work]

    result = fill_folder(photos, tmp_path / "out", all_hole, fill, batch=3)
    assert sorted(path.as_posix() for path in result.filled) == ["0.png", "more/2.png"]
    assert result.failed == {Path("1.png"): "this one is bad"}
    assert sorted(result.without_face) == sorted(result.filled)
