"""The evaluation: metrics against scikit-image, pairing, the enforced composite, odd files, reports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from showface import evaluation as ev
from showface.data import find_images
from showface.files import write_text

SIZE = 64


def random_image(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Smooth colour plus noise, so that SSIM is neither 0 nor 1."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def band_mask(ratio: float, seed: int, size: int = SIZE) -> np.ndarray:
    """A hole of exactly round(ratio * pixels) pixels, at a place that depends on the seed."""
    flat = np.arange(size * size) < round(ratio * size * size)
    return np.roll(flat, 37 * seed).reshape(size, size)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    (tmp_path / "faces").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(5):
        Image.fromarray(random_image(i)).save(tmp_path / "faces" / f"{i}.png")
    for i, ratio in enumerate([0.005, 0.05, 0.1, 0.15, 0.25, 0.3, 0.4, 0.45, 0.5, 0.58, 0.9]):
        Image.fromarray(band_mask(ratio, i)).save(tmp_path / "masks" / f"{i:02d}.png")
    return find_images(tmp_path / "faces"), find_images(tmp_path / "masks")


def mean_fill(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    result = image.copy()
    result[hole] = image[~hole].mean(axis=0).astype(np.uint8)
    return result


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 91), (11, 11)])
@pytest.mark.parametrize("strength", [1, 20, 120])
def test_metrics_agree_with_scikit_image(height: int, width: int, strength: int) -> None:
    target = random_image(0, height, width)
    noise = np.random.default_rng(1).integers(-strength, strength + 1, target.shape)
    result = np.clip(target + noise, 0, 255).astype(np.uint8)
    expected = structural_similarity(
        result,
        target,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
    )
    assert ev.ssim(result, target) == pytest.approx(expected, abs=1e-4)
    assert ev.psnr(result, target) == pytest.approx(peak_signal_noise_ratio(target, result, data_range=255))


def test_l1_is_a_percentage_of_the_full_range() -> None:
    black, hole = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), bool)
    hole[:5] = True
    result = black.copy()
    result[hole] = 255
    # 255 - 0 and 0 - 255 must both count: uint8 differences wrap around.
    for a, b in ((result, black), (black, result)):
        assert ev.l1_percent(a, b) == pytest.approx(25)
        assert ev.hole_l1_percent(a, b, hole) == pytest.approx(100)


def test_identical_images_have_the_psnr_ceiling() -> None:
    image = random_image(0)
    assert ev.psnr(image, image) == ev.PSNR_CEILING
    assert ev.ssim(image, image) == pytest.approx(1)
    nearly = np.zeros((512, 512, 3), np.uint8)
    nearly[0, 0, 0] = 1  # 107 dB by the formula; it must not score higher than an exact result
    assert ev.psnr(nearly, np.zeros_like(nearly)) == ev.PSNR_CEILING


@pytest.mark.parametrize("metric", [ev.l1_percent, ev.psnr, ev.ssim])
def test_metrics_refuse_other_images(metric) -> None:
    image = random_image(0)
    for bad in (
        image / np.float32(255),
        image[..., 0],
        np.dstack([image, image[..., :1]]),
        image[:-1],
        image[:0],
    ):
        with pytest.raises(ValueError):
            metric(bad, image)
        with pytest.raises(ValueError):
            metric(image, bad)


def test_metrics_refuse_bad_holes_and_tiny_images() -> None:
    image = random_image(0)
    for bad in (
        np.zeros((SIZE, SIZE), bool),
        np.ones((SIZE, SIZE), np.uint8),
        np.ones((SIZE, SIZE, 1), bool),
    ):
        with pytest.raises(ValueError, match="hole"):
            ev.hole_l1_percent(image, image, bad)
    with pytest.raises(ValueError, match="11x11"):
        ev.ssim(image[:10], image[:10])


def test_plan_is_reproducible_and_within_bins(folders) -> None:
    images, masks = folders
    pairs = ev.plan(images, masks, SIZE)
    assert pairs == ev.plan(images, masks[::-1], SIZE)  # the order of the masks doesn't matter
    assert pairs != ev.plan(images, masks, SIZE, seed=1)
    assert len(pairs) == len(images) * len(ev.BINS)
    for pair in pairs:
        hole = ev.read_hole(pair.mask, SIZE)
        assert pair.ratio == hole.mean()
        assert pair.bin[0] < pair.ratio <= pair.bin[1]
        assert pair.image_set == "faces"
    first_bin = [pair.mask for pair in pairs[:5]]
    assert len(set(first_bin[:3])) == 3  # all three masks of the bin are used before one is used again
    assert first_bin[3:] == first_bin[:2]


def test_fewer_images_keep_their_masks(folders) -> None:
    images, masks = folders
    every = ev.plan(images, masks, SIZE)
    assert all(pair in every for pair in ev.plan(images[:2], masks, SIZE))


def test_plan_measures_the_mask_as_used(folders, tmp_path: Path) -> None:
    big = np.zeros((3 * SIZE, 3 * SIZE), np.uint8)
    big[1::3, : 3 * SIZE // 2] = 255  # a sixth of the file, but half of the pixels that a nearest resize by 3 keeps
    path = tmp_path / "20_by_its_name.png"
    Image.fromarray(big).save(path)
    (pair,) = ev.plan(folders[0][:1], [path], SIZE, [(0.40, 0.60)])
    assert pair.ratio == 0.5


def test_plan_errors(folders) -> None:
    images, masks = folders
    with pytest.raises(ValueError, match="no images"):
        ev.plan([], masks, SIZE)
    with pytest.raises(ValueError, match=r"white \(255\) must mean hole"):
        ev.plan(images, masks[:1], SIZE)
    with pytest.raises(ValueError, match="ratios found: none"):
        ev.plan(images, [], SIZE)
    with pytest.raises(ValueError, match="size"):
        ev.plan(images, masks, 0)
    with pytest.raises(ValueError, match="low < high"):
        ev.plan(images, masks, SIZE, [(20, 40)])


def test_images_and_masks_of_another_shape_are_cropped_and_resized(tmp_path: Path) -> None:
    hole = np.zeros((32, 32), bool)
    hole[8:24, 4:20] = True
    Image.fromarray(hole).save(tmp_path / "mask.png")
    assert np.array_equal(ev.read_hole(tmp_path / "mask.png", 32), hole)
    assert np.array_equal(ev.read_hole(tmp_path / "mask.png", 64), np.kron(hole, np.ones((2, 2), bool)))
    tall = random_image(0)[:, :40]
    Image.fromarray(tall).save(tmp_path / "tall.png")
    assert np.array_equal(ev.read_target(tmp_path / "tall.png", 40), tall[12:52])


def test_composite_is_enforced_and_alterations_are_counted(folders) -> None:
    pairs = ev.plan(*folders, SIZE)

    def careless(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        image[:] = mean_fill(image, hole)  # a system may overwrite its arguments
        hole[:] = True
        image[0, 0] += 1
        return image

    careful, spoilt = (ev.evaluate({"system": s}, pairs) for s in (mean_fill, careless))
    for pair, a, b in zip(pairs, careful, spoilt, strict=True):
        corner_known = not ev.read_hole(pair.mask, SIZE)[0, 0]
        assert a.altered_known == 0
        assert b.altered_known == int(corner_known)
        assert not corner_known or a.psnr == b.psnr
        target, composite, _ = ev.complete(careless, pair)
        known = ~ev.read_hole(pair.mask, SIZE)
        assert np.array_equal(composite[known], target[known])
        assert np.array_equal(target, ev.read_target(pair.image, SIZE))


def test_systems_cannot_see_the_hole(folders) -> None:
    scores = ev.evaluate({"copy": lambda image, hole: image}, ev.plan(*folders, SIZE))
    assert all(score.hole_l1_percent > 1 for score in scores)


def test_perfect_system_has_finite_means(folders) -> None:
    pairs = ev.plan(*folders, SIZE)
    answers = iter([ev.read_target(pair.image, SIZE) for pair in pairs])
    rows = ev.summarise(ev.evaluate({"perfect": lambda image, hole: next(answers)}, pairs))
    assert [(row.psnr, row.l1_percent, row.hole_l1_percent) for row in rows] == [(ev.PSNR_CEILING, 0, 0)] * 3


def test_evaluate_errors(folders) -> None:
    images, masks = folders
    pairs = ev.plan(images, masks, SIZE)
    with pytest.raises(ValueError, match="no systems"):
        ev.evaluate({}, pairs)
    for bad in (lambda i, h: i[:-1], lambda i, h: i / 255, lambda i, h: i[..., :1]):
        with pytest.raises(ValueError, match=r"broken: the result for 0\.png must be uint8"):
            ev.evaluate({"broken": bad}, pairs)
    Image.fromarray(band_mask(0.15, 99)).save(pairs[0].mask)
    with pytest.raises(ValueError, match="isn't the mask that was planned"):
        ev.evaluate({"fill": mean_fill}, pairs)


def test_means_per_set_and_over_all(folders) -> None:
    images, masks = folders
    pairs = ev.plan(images[:2], masks, SIZE, image_set="a") + ev.plan(images, masks, SIZE, image_set="b")
    seen: list[tuple[int, int]] = []
    scores = ev.evaluate({"fill": mean_fill, "copy": lambda i, h: i}, pairs, progress=lambda *n: seen.append(n))
    rows = ev.summarise(scores)
    assert seen[-1] == (len(pairs), len(pairs))
    assert [row.image_set for row in rows] == ["a"] * 6 + ["b"] * 6 + [ev.ALL_SETS] * 6
    assert [row.images for row in rows] == [2] * 6 + [5] * 6 + [7] * 6
    assert [row.system for row in rows] == ["fill", "copy"] * 9
    by_hand = [s.psnr for s in scores if s.system == "fill" and s.bin == "20-40%"]
    row = next(r for r in rows if (r.image_set, r.bin, r.system) == (ev.ALL_SETS, "20-40%", "fill"))
    assert row.psnr == pytest.approx(np.mean(by_hand))


def test_reports(folders, tmp_path: Path) -> None:
    pairs = ev.plan(*folders, SIZE)
    scores = ev.evaluate({"fill": mean_fill}, pairs)
    rows = ev.summarise(scores)
    out = tmp_path / "new" / "out"
    ev.write_json(out / "r.json", rows=rows, scores=scores, pairs=pairs, settings={"seed": 0})
    ev.write_csv(rows, out / "rows.csv")
    ev.write_csv(pairs, out / "manifest.csv")
    content = json.loads((out / "r.json").read_text())
    assert content["settings"] == {"seed": 0}
    assert content["rows"][0]["psnr"] == rows[0].psnr
    assert len(content["scores"]) == len(content["manifest"]) == len(pairs)
    assert str(tmp_path) not in (out / "r.json").read_text()  # file names only, without the paths of this machine
    with (out / "manifest.csv").open() as file:
        assert [line["mask_sha256"] for line in csv.DictReader(file)] == [pair.mask_sha256 for pair in pairs]
    table = ev.markdown_table(*ev.table(rows)).splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(ValueError, match="nothing to write"):
        ev.write_csv([], out / "none.csv")
    assert sorted(path.name for path in out.iterdir()) == ["manifest.csv", "r.json", "rows.csv"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_demo_assets() -> None:
    folder = Path(__file__).parents[1] / "showface" / "assets" / "demo"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 250_000
    assert ev.read_target(folder / "portrait.png", 256).shape == (256, 256, 3)
    assert 0.20 < ev.read_hole(folder / "mask.png", 256).mean() < 0.25
