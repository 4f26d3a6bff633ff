"""`experiments/photo_scenes.py`: where faces lie in scenes, their holes, and the scores."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from showface import MDRNets, inference
from showface.data import ALIGNED_POINTS, find_images
from showface.evaluation import generate_masks

import photo_scenes
import scenes
from support.pictures import save_faces

BINS = [(0.2, 0.4), (0.4, 0.6)]


@pytest.fixture
def files(faces: Path, model: MDRNets, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Seven pictures, and the tiny network in the place of the bundled one."""
    monkeypatch.setattr(inference, "default_model", lambda: model)
    return find_images(save_faces(faces, 7, scenes.SIDE))


@pytest.fixture
def masks(tmp_path: Path) -> list[Path]:
    return generate_masks(tmp_path / "masks", scenes.SIDE, BINS, 2, 0)


def dotted(path: Path) -> Path:
    """A grey picture with a white dot on each point of the template."""
    image = np.full((scenes.SIDE, scenes.SIDE, 3), 60, np.uint8)
    centres = np.arange(scenes.SIDE) + 0.5
    for x, y in np.asarray(ALIGNED_POINTS) * scenes.SIDE:
        image[np.hypot(centres[None] - x, centres[:, None] - y) < 5] = 255
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("index", range(4))
def test_the_transform_takes_the_points_to_their_place(tmp_path: Path, index: int) -> None:
    file = dotted(tmp_path / "dots.png")
    scene = scenes.Album([file] * 4, seed=1).portrait(index)
    (placement,) = scene.placements
    grey = np.asarray(scene.photo, dtype=np.float64).mean(axis=2)
    whole = np.ones((scenes.SIDE, scenes.SIDE), bool)
    grey[~scene.hole([whole])] = 0
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]] + 0.5
    scale = np.sqrt(np.linalg.det(placement.matrix[:, :2]))
    assert 0.7 <= scale <= 2
    for point in placement.points:
        weight = np.where(np.hypot(x - point[0], y - point[1]) < 8 * scale, np.maximum(grey - 60, 0), 0)
        centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        assert np.abs(centre - point).max() < 0.3 * scale


def test_a_transform_and_its_inverse_keep_a_picture(files: list[Path]) -> None:
    image = Image.open(files[0])
    for scale, degrees in ((0.7, 25), (1.9, -30)):
        matrix = scenes.similarity(scale, degrees, (400, 380))
        there = scenes.warp(image, matrix, (800, 760))
        back = scenes.warp(there, scenes.invert(matrix), image.size)
        inner = np.s_[8:-8, 8:-8]
        assert np.abs(np.asarray(back, dtype=float)[inner] - np.asarray(image, dtype=float)[inner]).max() < 4


def test_scenes_repeat_and_holes_are_in_their_bin(files: list[Path], masks: list[Path]) -> None:
    found = list(photo_scenes.cases(files, masks, BINS, 5))
    for a, b in zip(found, photo_scenes.cases(files, masks, BINS[:1], 5), strict=False):
        assert a.scene.photo.tobytes() == b.scene.photo.tobytes()
    assert len(found) == 16
    expected = [("portrait", "20-40%"), ("group", "20-40%"), ("portrait", "40-60%")]
    assert [(case.kind, case.bin) for case in found[6:9]] == expected
    for a in found[5:]:
        low, high = (float(part) / 100 for part in a.bin.rstrip("%").split("-"))
        assert all(low < hole.mean() <= high for hole in a.holes)
        faces = a.scene.hole([np.ones_like(hole) for hole in a.holes])
        assert a.scene.hole(a.holes).sum() / faces.sum() == pytest.approx(np.mean([h.mean() for h in a.holes]), abs=0.1)
        assert faces.sum() < 0.6 * faces.size
    other = next(photo_scenes.cases(files, masks, BINS, 6))
    assert other.scene.photo.tobytes() != found[0].scene.photo.tobytes()


def test_known_pixels_are_kept_and_the_hole_is_hidden(files: list[Path], masks: list[Path]) -> None:
    case = next(photo_scenes.cases(files, masks, BINS[:1], 0))

    def copy(photo: Image.Image, hole: np.ndarray) -> Image.Image:
        assert (np.asarray(photo)[hole] == 127).all()
        return Image.eval(photo, lambda value: min(value + 1, 255))

    hole, results = photo_scenes.fill(case, {"copy": copy})
    assert list(results) == ["copy", "true crop", "aligned crop"]
    truth = np.asarray(case.scene.photo)
    for image in results.values():
        assert np.array_equal(np.asarray(image)[~hole], truth[~hole])
    assert (np.asarray(results["copy"])[hole] == 128).all()


def test_the_oracles_with_a_perfect_filler_restore_the_photo(
    files: list[Path], masks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in photo_scenes.cases(files, masks, BINS[:1], 0) if case.kind == "group")
    answers = iter([placement.face for placement in case.scene.placements] * 2)
    monkeypatch.setattr(photo_scenes.showface, "inpaint", lambda *_, **__: next(answers), raising=False)
    hole, results = photo_scenes.fill(case, {})
    for image in results.values():
        assert photo_scenes.hole_psnr(image, case.scene.photo, hole) > 40


def test_a_run_without_opencv(
    files: list[Path], masks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_scenes, "find_spec", lambda name: None)
    scores = photo_scenes.run(files[:2], masks, tmp_path, BINS[:1], sheet=1)
    assert {score.method for score in scores} == {"without faces", "showface", "true crop", "aligned crop"}
    assert "| portrait | 2 | aligned crop |" in (tmp_path / "table.md").read_text()
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + len(scores)
    assert Image.open(tmp_path / "contact-sheet.png").width > 5 * 300


def test_table() -> None:
    values = {"navier-stokes": 18, "mine": 19.5, "aligned crop": 20}
    scores = [
        photo_scenes.Score("portrait", scene, "20-40%", name, psnr + scene)
        for scene in (0, 1)
        for name, psnr in values.items()
    ]
    lines = photo_scenes.table(scores).splitlines()
    assert lines[2:] == [
        "| portrait | 2 | navier-stokes | 18.50 | 0% |",
        "| portrait | 2 | mine | 20.00 | 75% |",
        "| portrait | 2 | aligned crop | 20.50 | 100% |",
    ]


def test_recall_of_a_detector(files: list[Path], masks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(photo_scenes.without_holes(files[:2], 0))
    holed = list(photo_scenes.cases(files[:2], masks, BINS[:1], 0))
    true = {case.scene.photo.tobytes(): case.scene.placements[0].points for case in whole}

    def find_faces(photo: Image.Image) -> list[SimpleNamespace]:
        """Finds whole faces exactly; and always one where there is none."""
        nowhere = np.asarray(ALIGNED_POINTS) * 100 - 5000
        found = true.get(photo.tobytes())
        return [SimpleNamespace(points=points) for points in (found, nowhere) if points is not None]

    detector = ModuleType("showface.faces")
    detector.find_faces = find_faces
    monkeypatch.setitem(sys.modules, "showface.faces", detector)
    squares = [photo_scenes.true_square(case.scene.placements[0]) for case in whole]
    answers = iter(squares)
    widened = SimpleNamespace(restore=lambda *_: SimpleNamespace(crops=[next(answers).widened(1.1)]))
    monkeypatch.setattr(photo_scenes.showface, "Inpainter", lambda: widened)
    lines = photo_scenes.recall([*whole, *holed]).splitlines()
    assert "| portrait | none | as it is | 2 | 100% | 0.00 | 2 |" in lines
    assert "| portrait | 20-40% | as it is | 2 | 0% | - | 2 |" in lines
    assert "| portrait | 20-40% | restored | 2 | 0% | - | 0 |" in lines  # a widened crop is no face
    assert photo_scenes.overlap(squares[0], squares[0].widened(1.25)) == pytest.approx(1 / 1.25**2, abs=0.01)


def test_ratios() -> None:
    assert photo_scenes.read_bins("20-40,40-60") == BINS
    with pytest.raises(photo_scenes.argparse.ArgumentTypeError, match="like 20-40"):
        photo_scenes.read_bins("20")
