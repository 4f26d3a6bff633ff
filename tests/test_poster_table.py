"""The tables of `experiments/poster_table.py`, from results with known means."""

import json
from pathlib import Path

import pytest

import poster_table

BINS = ("1-20%", "20-40%", "40-60%")


def write_results(path: Path, psnr: dict[str, tuple[float, float]], image_set: str = "celebahq") -> Path:
    """Write results with the PSNR of two images in each bin. L1 % is 100 minus it, and SSIM a hundredth of it."""
    rows, scores = [], []
    for system, of_images in psnr.items():
        mean = sum(of_images) / 2
        for label in BINS:
            measured = {"l1_percent": 100 - mean, "fid": None, "psnr": mean, "ssim": mean / 100}
            rows.append({"image_set": image_set, "system": system, "bin": label, "images": 2, **measured})
            for image, value in zip("ab", of_images, strict=True):
                case = {"image": f"somewhere/{image}.png", "mask": "m.png", "bin": label, "psnr": value}
                scores.append({"image_set": image_set, "system": system, **case})
    path.write_text(json.dumps({"rows": rows, "scores": scores}))
    return path


def test_one_run(tmp_path):
    file = write_results(tmp_path / "a.json", {"unet": (20, 30), "mdrnets": (22, 31), "pconv": (10, 11)})
    results = poster_table.read([file])
    assert poster_table.winners(results, "celebahq", "psnr", BINS[0]) == ["mdrnets", "unet", "pconv"]
    assert poster_table.winners(results, "celebahq", "l1_percent", BINS[0]) == ["mdrnets", "unet", "pconv"]
    lines = poster_table.report([file]).splitlines()
    assert sum(line.startswith("| **mdrnets** | **73.500** |") for line in lines) == 1
    assert sum(line.startswith("| unet | 75.000 |") for line in lines) == 1
    assert "| celebahq | PSNR dB | 40-60% | mdrnets | unet | 1.50 | 1 of 3 |" in lines
    # Differences of 2 and 1: their mean, and its standard error over two pairs.
    assert "| unet | +1.500 ± 0.500 | +1.500 ± 0.500 | +1.500 ± 0.500 |" in lines
    assert not any("FID" in line for line in lines)
    published = next(line for line in lines if "MDRNets, published" in line)
    assert published.split(" | ")[1:] == (
        ["*0.585*", "*1.451*", "*2.937*", "*35.772*", "*28.669*", "*24.177*", "*0.968*", "*0.900*", "*0.800* |"]
    )


def test_one_system_has_no_next(tmp_path):
    lines = poster_table.report([write_results(tmp_path / "a.json", {"mdrnets": (22, 31)})]).splitlines()
    assert "| celebahq | PSNR dB | 40-60% | mdrnets | - | - | 1 of 1 |" in lines


def test_runs_with_several_seeds(tmp_path):
    first = write_results(tmp_path / "a.json", {"mdrnets": (22, 31), "unet": (20, 30)})
    second = write_results(tmp_path / "b.json", {"mdrnets": (20, 29), "unet": (21, 30)})
    results = poster_table.read([first, second])
    assert results.mean("celebahq", "mdrnets", "psnr", BINS[1]) == 25.5
    assert "| unet | +0.250 ± 0.250 (-1.000 to +1.500) |" in poster_table.report([first, second])


@pytest.mark.parametrize("other", [{"mdrnets": (20, 20)}, {"mdrnets": (20, 20), "pic": (20, 20)}])
def test_refuses_runs_of_other_systems(tmp_path, other):
    first = write_results(tmp_path / "a.json", {"mdrnets": (22, 31), "unet": (20, 30)})
    with pytest.raises(ValueError, match="differ in systems"):
        poster_table.read([first, write_results(tmp_path / "b.json", other)])


def test_refuses_runs_on_other_pairs(tmp_path):
    first = write_results(tmp_path / "a.json", {"mdrnets": (22, 31)})
    second = write_results(tmp_path / "b.json", {"mdrnets": (22, 31)})
    second.write_text(second.read_text().replace("a.png", "c.png"))
    with pytest.raises(ValueError, match="differ in their pairs"):
        poster_table.read([first, second])
