"""Filling tar files: samples go in and come out, failures leave out their sample, and nothing is half-written."""

from __future__ import annotations

import gc
import io
import signal
import subprocess
import sys
import tarfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from showface.batch import Shard, fill_tars
from showface.data import Photo
from showface.data.tars import Sample
from showface.data.urls import url_name

from support.commands import Filled, assert_fails, files
from support.pictures import save

SIDE = 50
BOX = (10, 10, 29, 24)
Members = dict[str, bytes]


def picture(seed: int) -> Image.Image:
    """Smooth colours, none of them white."""
    small = np.random.default_rng(seed).integers(0, 200, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, form: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def mask(box: tuple[int, int, int, int] = BOX) -> bytes:
    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).rectangle(box, fill=255)
    return encoded(image)


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1234
            tar.addfile(info, io.BytesIO(data))
    return path


def read_tar(path: Path | str) -> Members:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def sample(key: str, seed: int = 0) -> Members:
    return {f"{key}.cls": b"7", f"{key}.png": encoded(picture(seed)), f"{key}.mask.png": mask()}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A folder of three tar files with two samples each."""
    for number in range(3):
        both = sample("a/0", 2 * number) | sample("b", 2 * number + 1)
        write_tar(tmp_path / "in" / f"p-{number:03d}.tar", both)
    return tmp_path / "in"


@pytest.fixture
def inpaint(showface, folder):
    """Run `showface inpaint` with a tiny model and into the folder `out`."""

    def run(photos: object, *arguments: object) -> tuple[int, str, str]:
        return showface("inpaint", "--no-faces", photos, "-o", "out", "--model", folder, *arguments)

    return run


HOLE = np.zeros((SIDE, SIDE), dtype=bool)
HOLE[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = True


class TestSamples:
    def test_round_trip(self, inpaint, tmp_path):
        exif = Image.Exif()
        exif[ExifTags.Base.Make] = "A camera"
        members = {
            "README.txt": b"of no sample",
            "in/a.txt": b"a face",
            "in/a.jpg": encoded(picture(0), "jpeg", quality=60, exif=exif, icc_profile=b"0" * 16 + b"RGB " + b"0" * 99),
            "in/a.parsing.png": b"never decoded",
            "in/a.MASK.PNG": mask(),
            "in/._b.png": b"hidden",
            "in/b.json": b"{}",
            "in/b.mask.bmp": encoded(Image.open(io.BytesIO(mask())), "bmp"),
            "in/b.png": encoded(picture(1)),
            "in/b.webp": b"a second image of the sample",
            "text/c.txt": b"a sample without an image",
            "ä" * 200 + ".png": encoded(picture(2)),
            "ä" * 200 + ".mask.png": mask(),
        }
        path = write_tar(tmp_path / "in" / "x.tar", members)
        code, out, err = inpaint(path)
        assert (code, err) == (0, "")
        assert f"3 photos filled in 1 of 1 tar files, 0 finished before, 0 failed: {Path('out').resolve()}" in out
        found = read_tar("out/x.tar")
        assert list(found) == list(members)
        images = ["in/a.jpg", "in/b.png", "ä" * 200 + ".png"]
        assert {name: data for name, data in found.items() if members[name] != data}.keys() == set(images)
        for name in images[1:]:
            changed = (pixels(found[name]) != pixels(members[name])).any(-1)
            assert changed.any()
            assert not (changed & ~HOLE).any()
        before, after = (Image.open(io.BytesIO(one["in/a.jpg"])) for one in (members, found))
        assert after.format == "JPEG"
        assert after.quantization == before.quantization
        assert after.getexif() == exif
        assert after.info["icc_profile"] == before.info["icc_profile"]
        with tarfile.open("out/x.tar") as tar:
            assert {info.mtime for info in tar} == {1234}

    def test_as_a_folder_is_filled(self, showface, inpaint, folder, tars, tmp_path):
        members = read_tar(tars / "p-000.tar")
        save(Image.open(io.BytesIO(members["b.png"])), tmp_path / "photos" / "b.png")
        save(Image.open(io.BytesIO(members["b.mask.png"])), tmp_path / "masks" / "b.png")
        common = ("--grow", 2, "--invert", "--size", 16)
        assert inpaint(tars / "p-000.tar", *common)[0] == 0
        masks, model = ("--mask", tmp_path / "masks"), ("--model", folder)
        showface("inpaint", "--no-faces", tmp_path / "photos", *masks, "-o", "folder", *model, *common)
        assert read_tar("out/p-000.tar")["b.png"] == Path("folder/b.png").read_bytes()

    def test_one_mask_for_all(self, inpaint, tars, tmp_path):
        (tmp_path / "one.png").write_bytes(mask((0, 0, 4, 4)))
        assert inpaint(tars / "p-000.tar", "--mask", tmp_path / "one.png")[0] == 0
        before, after = read_tar(tars / "p-000.tar"), read_tar("out/p-000.tar")
        rows, columns = np.nonzero((pixels(before["b.png"]) != pixels(after["b.png"])).any(-1))
        assert max(*rows, *columns) <= 4
        assert after["b.mask.png"] == before["b.mask.png"]

    def test_paint_and_alpha(self, inpaint, tmp_path):
        image = picture(0)
        ImageDraw.Draw(image).rectangle(BOX, fill="white")
        alpha = picture(1)
        alpha.putalpha(Image.fromarray(~HOLE).convert("L"))
        path = write_tar(tmp_path / "in" / "painted.tar", {"a.png": encoded(image)})
        assert inpaint(path, "--paint", "white")[0] == 0
        assert not (pixels(read_tar("out/painted.tar")["a.png"]) == 255).all(-1).any()
        path = write_tar(tmp_path / "in" / "erased.tar", {"a.png": encoded(alpha)})
        assert inpaint(path, "--alpha")[0] == 0
        result = Image.open(io.BytesIO(read_tar("out/erased.tar")["a.png"]))
        assert np.asarray(result.getchannel("A")).min() == 255
        assert np.array_equal(np.asarray(result)[~HOLE], np.asarray(alpha)[~HOLE])

    def test_links_and_folders_are_copied(self, inpaint, tmp_path):
        path = write_tar(tmp_path / "in" / "x.tar", sample("d/a"))
        with tarfile.open(path, "a") as tar:
            for name, kind in (("d", tarfile.DIRTYPE), ("d/b.png", tarfile.SYMTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "a.png" * (kind == tarfile.SYMTYPE)
                tar.addfile(info)
        assert inpaint(path)[0] == 0
        with tarfile.open("out/x.tar") as tar:
            assert tar.getmember("d").isdir()
            assert tar.getmember("d/b.png").linkname == "a.png"


class TestManyTars:
    def test_a_pattern(self, inpaint, tars):
        _, out, _ = inpaint(f"{tars}/p-{{000..001}}.tar")
        assert "4 photos filled in 2 of 2 tar files, 0 finished before" in out
        assert files("out") == ["p-000.tar", "p-001.tar"]
        _, out, _ = inpaint(f"{tars}/p-*.tar")
        assert "2 photos filled in 1 of 3 tar files, 2 finished before" in out
        assert files("out") == files(tars)

    def test_shards_are_all_tars_once(self, inpaint, tars):
        _, out, _ = inpaint(f"{tars}/p-*.tar", "--shard", "1/2")
        assert "4 photos filled in 2 of 2 tar files, 0 finished before" in out
        assert files("out") == ["p-000.tar", "p-002.tar"]
        _, out, _ = inpaint(f"{tars}/p-*.tar", "--shard", "2/2")
        assert "2 photos filled in 1 of 1 tar files, 0 finished before" in out
        assert files("out") == files(tars)

    def test_a_url(self, inpaint, tars):
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        for path in tars.iterdir():
            memory.pipe_file(f"/tars/{path.name}", path.read_bytes())
        code, out, _ = inpaint("memory://tars/p-{000..002}.tar")
        memory.rm("/tars", recursive=True)
        assert code == 0
        assert "6 photos filled in 3 of 3" in out
        assert read_tar("out/p-001.tar").keys() == read_tar(tars / "p-001.tar").keys()

    def test_overwrite(self, inpaint, tars):
        inpaint(tars / "p-000.tar")
        good = Path("out/p-000.tar").read_bytes()
        Path("out/p-000.tar").write_bytes(b"mine")
        assert inpaint(tars / "p-000.tar")[0] == 0
        assert Path("out/p-000.tar").read_bytes() == b"mine"
        inpaint(tars / "p-000.tar", "--overwrite")
        assert Path("out/p-000.tar").read_bytes() == good

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
    def test_a_stopped_run_is_started_again(self, inpaint, tars, tmp_path, stop):
        """Nothing under the final name is half-written, and what a killed process left is deleted."""
        program = """
import signal, sys, time
from pathlib import Path
from PIL import Image
from showface.batch import fill_tars
from support.commands import Filled
from test_batch_tars import HOLE
def fill(work):
    if work[0][0] == Image.open(sys.argv[3]).convert("RGB"):
        print("ready", flush=True)
        time.sleep(60)
    return [Filled(photo, 0) for photo, _ in work]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
fill_tars(sys.argv[1], Path(sys.argv[2]), lambda *_: HOLE, fill)
"""
        save(Image.open(io.BytesIO(read_tar(tars / "p-001.tar")["b.png"])), tmp_path / "last.png")
        command = [sys.executable, "-c", program, f"{tars}/p-*.tar", "out", tmp_path / "last.png"]
        paths = {"PYTHONPATH": ":".join(sys.path)}
        with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(stop)
        assert files("out")[-1] == "p-000.tar"
        assert len(files("out")) == (2 if stop == signal.SIGKILL else 1)
        finished = Path("out/p-000.tar").read_bytes()
        _, out, _ = inpaint(f"{tars}/p-*.tar")
        assert "4 photos filled in 2 of 3 tar files, 1 finished before" in out
        assert files("out") == files(tars)
        assert Path("out/p-000.tar").read_bytes() == finished


def test_photos_with_an_empty_hole_are_copied(inpaint, tmp_path):
    blank = encoded(Image.fromarray(np.zeros_like(pixels(mask()))))
    members = sample("a") | {"b.png": encoded(picture(1)), "b.mask.png": blank}
    code, out, err = inpaint(write_tar(tmp_path / "in" / "x.tar", members))
    assert (code, err.splitlines()) == (0, ["note: x.tar:b.png: the hole is empty, the photo is copied"])
    assert "1 photos filled, 1 copied in 1 of 1 tar files" in out
    assert np.array_equal(pixels(read_tar("out/x.tar")["b.png"]), pixels(members["b.png"]))
    only = write_tar(tmp_path / "in" / "only.tar", {"b.png": members["b.png"], "b.mask.png": blank})
    assert inpaint(only)[0] == 0


class TestFailures:
    def test_bad_samples_are_left_out(self, inpaint, tmp_path):
        members = sample("a") | sample("b") | {"c.png": encoded(picture(2)), "c.txt": b"no mask"} | sample("d", 3)
        members |= sample("e") | {"e.mask.tif": mask()}
        members["b.png"] = members["b.png"][:200]
        path = write_tar(tmp_path / "in" / "x.tar", members)
        code, out, err = inpaint(path, "--batch", 3)
        assert code == 1
        assert "2 photos filled in 1 of 1 tar files, 0 finished before, 0 failed" in out
        lines = err.splitlines()
        assert len(lines) == 4
        assert lines[0].startswith("failed: x.tar:b.png: cannot read image x.tar:b.png")
        assert lines[1] == "failed: x.tar:c.png: there is no mask c.mask.* in the tar file"
        assert lines[2] == "failed: x.tar:e.png: there are several masks e.mask.* in the tar file"
        assert lines[3] == "error: 3 photos failed, and are left out: x.tar:b.png, x.tar:c.png, x.tar:e.png"
        assert list(read_tar("out/x.tar")) == [*sample("a"), *sample("d")]

    def test_bad_tars_are_not_written_and_the_others_go_on(self, inpaint, tars):
        path = tars / "p-000.tar"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        write_tar(tars / "p-001.tar", {"a.txt": b""})
        write_tar(tars / "p-003.tar", {"a.png": b"no image"})
        write_tar(tars / "p-004.tar", {**sample("a"), **sample("b"), "a.more.txt": b""})
        (tars / "p-005.tar").write_bytes(b"no tar" * 999)
        code, out, err = inpaint(f"{tars}/p-*.tar")
        assert code == 1
        assert "2 photos filled in 1 of 6 tar files, 0 finished before, 5 failed" in out
        assert files("out") == ["p-002.tar"]
        lines = err.splitlines()
        assert lines[0] == f"failed: p-000.tar: cannot read tar file {path}: it is cut off or broken"
        assert lines[1].startswith("failed: p-001.tar: no images (.avif")
        assert lines[2].startswith("failed: p-003.tar:a.png: cannot read image")
        assert lines[3] == "failed: p-003.tar: none of its 1 photos was filled"
        assert lines[4].endswith("must follow one another, and those of a.more.txt do not")
        assert "is not an uncompressed tar file" in lines[5]
        assert lines[6].startswith("error: 1 photos failed, and are left out: p-003.tar:a.png; 5 of 6 tar files failed")

    def test_wrong_arguments(self, inpaint, tars, tmp_path):
        pattern = f"{tars}/p-*.tar"
        assert_fails(inpaint(f"{tars}/q-*.tar"), "no file matches")
        assert_fails(inpaint(f"{tars}/p-{{000..003}}.tar"), f"there is no tar file {tars}/p-003.tar")
        assert_fails(inpaint(tars / "p-009.tar"), "there is no tar file")
        assert_fails(inpaint(pattern, "--mask", tars), "can't be the mask of tar files")
        assert_fails(inpaint(tars / "p-000.tar", tars / "p-001.tar"), "quote a pattern of tar files")
        assert_fails(inpaint(pattern, "--paint", "red", "--alpha"), "mark the hole in one way")
        assert_fails(inpaint(pattern, "--mask", "nowhere.png"), "there is no mask nowhere.png")
        assert_fails(inpaint(pattern, "-o", tars), "results must be in a folder of their own")
        assert_fails(inpaint(pattern, "-o", tars / "p-000.tar"), "are written into a folder, but")
        assert_fails(inpaint(pattern, "--shard=4/3"), "a shard must be I/N")
        (tmp_path / "x.tar.gz").write_bytes(b"")
        for wrong in (tmp_path / "x.tar.gz", "http://example.org/a.png", f"{tars}/*"):
            (tars / "notes.txt").write_bytes(b"")
            assert_fails(inpaint(wrong), "must be in a folder or in uncompressed .tar files, got")
        write_tar(tmp_path / "other" / "p-000.tar", sample("a"))
        assert_fails(inpaint(f"{tmp_path}/{{in,other}}/p-000.tar"), "would be written to out/p-000.tar")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("a/b.tar", "b.tar"),
        ("s3://bucket/a/b.tar", "b.tar"),
        ("https://host/b.tar?token=x/y#z", "b.tar"),
        ("simplecache::s3://bucket/b.tar", "b.tar"),
        ("zip://a/b.tar::https://host/c.zip", "b.tar"),
        ("a/b?.tar", "b?.tar"),
    ],
)
def test_names_of_urls(url, name):
    assert url_name(url) == name


@pytest.mark.parametrize("batch", [1, 2])
def test_only_a_batch_is_in_memory(tmp_path, batch):
    """Samples of earlier batches can be freed, and so can their headers."""
    members: Members = {}
    for index in range(6):
        members |= sample(str(index), index)
    path = write_tar(tmp_path / "x.tar", members)
    seen: list[weakref.ref[Any]] = []
    sizes, steps = [], []

    def find_hole(found: Sample, photo: Photo) -> np.ndarray:
        gc.collect()
        assert sum(ref() is not None for ref in seen) <= 3 * batch
        seen.extend((weakref.ref(found), weakref.ref(photo.rgb)))
        return HOLE

    def fill(work: Sequence[tuple[Image.Image, np.ndarray]]) -> Iterator[Filled]:
        sizes.append(len(work))
        return [Filled(photo) for photo, _ in work]

    result = fill_tars(path, tmp_path / "out", find_hole, fill, batch=batch, progress=lambda *x: steps.append(x))
    assert (result.filled, result.faces, result.written) == (6, 6, ["x.tar"])
    assert sizes == [batch] * (6 // batch)
    assert steps[0] == (0, 1)
    assert steps[-1] == (1, 1)
    assert sorted(steps) == steps


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_of_tars_are_disjoint(tars, tmp_path, count):
    fill = [Filled(picture(0), 0)].__mul__
    for index in range(1, count + 1):
        result = fill_tars(
            f"{tars}/*.tar", tmp_path / "out", lambda *_: HOLE, lambda work: fill(len(work)), shard=Shard(index, count)
        )
        assert not result.skipped
    assert files(tmp_path / "out") == files(tars)
