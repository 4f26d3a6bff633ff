"""A whole evaluation, its perceptual measures, and its command."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from showface import evaluation as ev
from showface.data import ALIGNED_POINTS, COMPONENTS
from showface.evaluation.identity import face_chip

from support.pictures import save_faces

SIZE = 32


def mean_fill(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    result = image.copy()
    result[hole] = image[~hole].mean(axis=0).astype(np.uint8)
    return result


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three faces with regions: the left half skin, the right half hair, one column unknown."""
    folder = save_faces(tmp_path / "faces")
    labels = np.full((40, 40), 1, np.uint8)
    labels[:, 20:] = 13
    labels[:, 39] = 255
    (tmp_path / "faces_parsing").mkdir()
    for path in folder.iterdir():
        Image.fromarray(labels).save(tmp_path / "faces_parsing" / path.name)
    return folder


def test_run_writes_everything_and_repeats(images: Path, tmp_path: Path) -> None:
    systems = {"fill": mean_fill, "copy": lambda image, hole: image}
    found = ev.run_evaluation(systems, [images], tmp_path / "a", size=SIZE, seed=3)
    again = ev.run_evaluation(systems, [images], tmp_path / "b", size=SIZE, seed=3)
    assert found.rows == again.rows
    names = {path.name for path in (tmp_path / "a").iterdir()}
    files = {"table.md", "rows.csv", "scores.csv", "manifest.csv", "results.json", "contact-sheet.png"}
    assert names == files | {"masks"}
    for name in files - {"contact-sheet.png"}:
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    assert [(row.bin, row.images) for row in found.rows] == [(label, 3) for label in BINS for _ in systems]
    assert all(score.psnr > 0 for score in found.scores)
    table = (tmp_path / "a" / "table.md").read_text()
    assert "| skin |" in table
    assert "| hair |" in table
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    assert content["settings"]["seed"] == 3
    other = ev.run_evaluation(systems, [images], tmp_path / "c", size=SIZE, seed=4)
    assert other.rows != found.rows


BINS = ("1-20%", "20-40%", "40-60%")


def test_generated_masks_are_in_their_bins(tmp_path: Path) -> None:
    masks = ev.generate_masks(tmp_path, 24, ev.FINE_BINS, 3, 0)
    pairs = ev.plan([tmp_path / "none.png"] * 3, masks, 24, ev.FINE_BINS)
    assert len({pair.mask for pair in pairs}) == 18


def test_seam_and_regions() -> None:
    target = np.zeros((20, 20, 3), np.uint8)
    hole = np.zeros((20, 20), bool)
    hole[5:15, 5:15] = True
    result = target.copy()
    result[5, 5:15] = 255  # 10 of the 36 pixels that touch a known one
    assert ev.seam_l1_percent(result, target, hole) == pytest.approx(100 * 10 / 36)
    assert ev.seam_l1_percent(result, target, np.ones((20, 20), bool)) == 0
    labels = np.full((20, 20), -1)
    labels[5, 5:10] = 2
    labels[6:8, 5:15] = 4
    assert ev.region_l1_percent(result, target, hole, labels) == {2: (100.0, 5), 4: (0.0, 20)}


def test_gradient_in_the_hole() -> None:
    hole = np.zeros((20, 20), bool)
    hole[5:15, 5:15] = True
    stripes = np.zeros((20, 20, 3), np.uint8)
    stripes[:, ::2] = 255
    assert ev.hole_gradient_percent(stripes, hole) == pytest.approx(50)  # every step along rows, none along columns
    assert ev.hole_gradient_percent(stripes.swapaxes(0, 1), hole) == pytest.approx(50)
    edge = np.where(hole[..., None], np.uint8(255), np.zeros_like(stripes))
    assert ev.hole_gradient_percent(edge, hole) == 0  # a step between hole and known pixels is the seam's
    alone = np.zeros_like(hole)
    alone[3, 3] = alone[4, 4] = True
    assert ev.hole_gradient_percent(stripes, alone) == 0
    with pytest.raises(ValueError, match=r"hole must be bool of shape \(20, 20\), got bool \(20, 19\)"):
        ev.hole_gradient_percent(stripes, hole[:, 1:])


def test_sharpness_is_the_gradient_as_a_percentage_of_the_targets(images: Path, tmp_path: Path) -> None:
    masks = ev.generate_masks(tmp_path, SIZE, ev.BINS, 2, 0)
    paths = sorted(images.glob("*.png"))
    systems = {
        "exact": lambda image, hole: ev.read_target(paths[0], SIZE),
        "flat": lambda image, hole: np.full_like(image, 90),
    }
    rows = ev.summarise(ev.evaluate(systems, ev.plan(paths[:1], masks, SIZE)))
    assert {row.system: row.sharpness_percent for row in rows} == pytest.approx({"exact": 100, "flat": 0})
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "black.png")
    rows = ev.summarise(ev.evaluate(systems, ev.plan([tmp_path / "black.png"], masks, SIZE)))
    assert {row.sharpness_percent for row in rows} == {None}
    assert "-" in ev.table(rows)[1][0]


@pytest.mark.parametrize("holes", ["free-form", "components"])
def test_a_photo_whose_labels_cannot_be_used_is_left_out(images: Path, tmp_path: Path, holes: str) -> None:
    labels = tmp_path / "faces_parsing" / "1.png"
    Image.new("L", (40, 20)).save(labels)
    found = ev.run_evaluation({"fill": mean_fill}, [images], tmp_path / "out", size=SIZE, holes=holes)
    assert list(found.failed) == ["faces/1.png"]
    assert f"cannot use the labels {labels}: 40x20 labels do not have the shape" in found.failed["faces/1.png"]
    assert {score.image for score in found.scores} == {"0.png", "2.png"}


def test_labels_are_no_faces_and_are_found_for_nested_faces(images: Path, tmp_path: Path) -> None:
    """Faces and labels of a whole data set in one folder: the parsing folder lies beside the faces."""
    both = tmp_path / "set"
    for name in ("faces", "faces_parsing"):
        (both / name / "some").mkdir(parents=True)
        for path in (tmp_path / name).iterdir():
            path.rename(both / name / "some" / path.name)
    found = ev.run_evaluation({"fill": mean_fill}, both, tmp_path / "out", size=SIZE)
    assert {pair.image for pair in found.pairs} == {both / "faces" / "some" / f"{i}.png" for i in range(3)}
    assert {pair.labels for pair in found.pairs} == {both / "faces_parsing" / "some" / f"{i}.png" for i in range(3)}
    assert "skin" in {row.region for row in found.regions}


@pytest.mark.parametrize("kind", [str, Path])
def test_a_single_folder(images: Path, tmp_path: Path, kind: type) -> None:
    found = ev.run_evaluation({"fill": mean_fill}, kind(images), tmp_path / "out", size=SIZE)
    assert {row.image_set for row in found.rows} == {"faces"}


def test_the_output_is_checked_before_any_work(images: Path, tmp_path: Path) -> None:
    def unwanted(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        raise AssertionError("scored before the output was checked")

    systems = {"unwanted": unwanted}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=r"written into a folder, but .*file is a file"):
        ev.run_evaluation(systems, [images], file, size=SIZE)
    for out in (images / "out", tmp_path, images):
        with pytest.raises(ValueError, match="must be in separate folders"):
            ev.run_evaluation(systems, [images], out, size=SIZE)
    assert file.read_text() == "mine"
    assert len(list(images.iterdir())) == 3
    with pytest.raises(NotADirectoryError, match="file"):
        ev.run_evaluation(systems, [images], file / "out", size=SIZE)


def test_results_are_not_overwritten_unasked(images: Path, tmp_path: Path, showface) -> None:
    pytest.importorskip("cv2")
    arguments = ("evaluate", "--images", images, "--baseline", "telea", "--size", SIZE, "--out", "out")
    assert showface(*arguments)[0] == 0
    before = Path("out/results.json").read_bytes()
    code, _, err = showface(*arguments, "--seed", 1)
    assert (code, err) == (1, "error: out holds results already: give another folder, or --overwrite\n")
    assert Path("out/results.json").read_bytes() == before
    assert showface(*arguments, "--seed", 1, "--overwrite")[0] == 0
    assert Path("out/results.json").read_bytes() != before


def test_two_folders_of_one_name(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different names, got faces, faces"):
        ev.run_evaluation({"fill": mean_fill}, [images, images], tmp_path / "out", size=SIZE)


# Perceptual measures, with random weights in the place of real ones.


def alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet, under its names."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


@torch.no_grad()
def test_lpips(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    network = alexnet()
    torch.save({f"features.{name}": x for name, x in network.state_dict().items()}, tmp_path / "alexnet.pth")
    lpips = ev.LPIPS(tmp_path / "alexnet.pth")
    rng = np.random.default_rng(0)
    result, target = (rng.integers(0, 256, (80, 70, 3), dtype=np.uint8) for _ in range(2))
    assert lpips(target, target) == 0
    assert lpips(result, target) == pytest.approx(lpips(target, result))

    importance = torch.load(
        Path(pytest.importorskip("torchmetrics").__file__).parent / "functional/image/lpips_models/alex.pth",
        map_location="cpu",
        weights_only=True,
    )
    x = torch.from_numpy(np.stack([result, target])).permute(0, 3, 1, 2) / 127.5 - 1
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (x - mean[:, None, None]) / std[:, None, None]
    expected = 0.0
    for i, layer in enumerate(network):
        x = layer(x)
        if i in (1, 4, 7, 9, 11):
            unit = x / x.square().sum(1, keepdim=True).sqrt()
            weight = importance[f"lin{(1, 4, 7, 9, 11).index(i)}.model.1.weight"]
            expected += ((unit[0] - unit[1]).square() * weight[0]).sum(0).mean().item()
    assert lpips(result, target) == pytest.approx(expected, rel=1e-4)


def test_lpips_errors(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth: get it from https"):
        ev.LPIPS(tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold torchvision's AlexNet"):
        ev.LPIPS(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth: get it from https"):
        ev.FrechetDistances(tmp_path / "none.pth")


class Means(nn.Module):
    """An extractor whose features are the colours' means."""

    num_features = 3

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.double().mean((2, 3)) / 255


def test_frechet_distance_of_two_normal_distributions(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    frechet = ev.FrechetDistances(Means())
    rng = np.random.default_rng(0)
    real, fake = rng.integers(0, 256, (2, 40, 8, 8, 3), dtype=np.uint8)
    for i in range(40):
        frechet.add(("system", "a" if i < 15 else "b", "bin"), fake[i] // 2, real[i])
    x, y = (z.mean((1, 2)) / 255 for z in (fake // 2, real))
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(cov_x @ cov_y).real.clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * root
    whole = frechet.distance(("system", "a", "bin"), ("system", "b", "bin"))
    assert whole == pytest.approx(expected, rel=1e-6)
    assert frechet.distance(("system", "a", "bin")) != pytest.approx(expected, rel=1e-3)
    assert frechet.distance(("other", "a", "bin")) is None
    found = ev.run_evaluation(
        {"fill": mean_fill}, [images], tmp_path / "out", size=SIZE, frechet=ev.FrechetDistances(Means())
    )
    assert all(row.fid is not None and row.fid > 0 for row in found.rows)
    assert "| FID |" in (tmp_path / "out" / "table.md").read_text()


def colour_descriptor(chip: np.ndarray) -> np.ndarray:
    """A descriptor in the place of dlib's: the chip's mean colour."""
    assert chip.shape == (150, 150, 3)
    return chip.mean((0, 1)) / 255


def test_identity_is_the_distance_of_descriptors(images: Path, tmp_path: Path) -> None:
    black, white = np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)
    identity = ev.IdentityDistance(colour_descriptor)
    assert identity(black, black) == 0
    assert identity(white, black) == pytest.approx(3**0.5)
    with pytest.raises(ValueError, match="must be square, got 32x31"):
        identity(white[1:], black[1:])
    found = ev.run_evaluation({"fill": mean_fill}, [images], tmp_path / "out", size=SIZE, identity=identity)
    assert all(row.identity is not None and 0 < row.identity < 1 for row in found.rows)
    assert "| IDENTITY |" in (tmp_path / "out" / "table.md").read_text()


def test_the_chip_has_the_eyes_where_dlib_puts_them() -> None:
    side = 512
    image = np.zeros((side, side, 3), np.uint8)
    centres = np.arange(side) + 0.5
    for x, y in np.asarray(ALIGNED_POINTS[:2]) * side:
        image[np.hypot(centres[None] - x, centres[:, None] - y) < 8] = 255
    chip = face_chip(image)[..., 0].astype(float)
    y, x = np.mgrid[:150, :150] + 0.5
    for half, expected in ((x < 75, (47.7, 47.1)), (x > 75, (100.3, 47.1))):
        weight = chip * half
        assert ((weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()) == pytest.approx(expected, abs=1)


def test_identity_without_its_packages(images: Path, monkeypatch: pytest.MonkeyPatch, showface) -> None:
    monkeypatch.setattr("showface.evaluation.identity.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs dlib-bin: install 'showface\[identity\]'"):
        ev.IdentityDistance()
    code, _, err = showface("evaluate", "--images", images, "--baseline", "telea", "--identity", "--out", "out")
    assert code == 1
    assert err == "error: the identity distance needs dlib-bin: install 'showface[identity]'\n"


def test_identity_by_dlib() -> None:
    if find_spec("dlib") is None or find_spec("face_recognition_models") is None:
        pytest.skip("needs dlib-bin and face-recognition-models")
    portrait = ev.read_target(Path(ev.__file__).parents[1] / "assets" / "demo" / "portrait.png", 256)
    identity = ev.IdentityDistance()
    assert identity(portrait, portrait) == 0
    assert identity(portrait, 255 - portrait) > identity(portrait, np.clip(portrait, 40, 200)) > 0


def test_run_on_components(images: Path, tmp_path: Path) -> None:
    found = ev.run_evaluation({"fill": mean_fill}, [images], tmp_path / "a", size=SIZE, holes="components")
    again = ev.run_evaluation({"fill": mean_fill}, [images], tmp_path / "b", size=SIZE, holes="components")
    assert found.scores == again.scores
    assert [(row.bin, row.images) for row in found.rows] == [(name, 3) for name in COMPONENTS]
    assert len(list((tmp_path / "a" / "masks" / "faces").iterdir())) == 3 * len(COMPONENTS)
    assert "| lower half |" in (tmp_path / "a" / "table.md").read_text()
    left = ev.read_hole(tmp_path / "a" / "masks" / "faces" / "left-half-0000.png", SIZE)
    assert left[:, :15].all()  # the labels say that all of this half is skin
    for wrong in ({"masks": images}, {"fine": True}):
        with pytest.raises(ValueError, match="neither masks nor finer bins"):
            ev.run_evaluation({"fill": mean_fill}, [images], tmp_path / "c", size=SIZE, holes="components", **wrong)
    with pytest.raises(ValueError, match="holes must be one of free-form, components"):
        ev.run_evaluation({"fill": mean_fill}, [images], tmp_path / "c", size=SIZE, holes="dots")


def test_components_from_the_command_line(images: Path, showface) -> None:
    pytest.importorskip("cv2")
    arguments = ("evaluate", "--images", images, "--baseline", "telea", "--size", SIZE, "--out", "out")
    code, out, _ = showface(*arguments, "--holes", "components")
    assert code == 0
    assert "right half" in out
