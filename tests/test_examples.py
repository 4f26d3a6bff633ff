"""Every script in examples/ runs to its end, with small settings."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import ExifTags, Image

import showface

from support.pictures import save_faces

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example in an empty folder as `python examples/<name>.py <arguments>` does; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *arguments: object) -> str:
        script = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name


def test_restore_photo(run):
    assert "256 x 256" in run("restore_photo", "--model", "psnr")
    assert Image.open("restored.png").size == (256, 256)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    Image.open("restored.png").resize((64, 64)).save("photo.jpg", exif=exif)
    Image.new("1", (64, 64), 1).save("mask.png")
    before = Path("photo.jpg").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        run("restore_photo", "photo.jpg", "mask.png", "--out", "photo.jpg")
    assert Path("photo.jpg").read_bytes() == before
    run("restore_photo", "photo.jpg", "mask.png", "--out", "filled.jpg")
    assert Image.open("filled.jpg").getexif()[ExifTags.Base.Make] == "Camera"


def test_fine_tune(run):
    faces = save_faces(Path("faces"))
    sizes = ("--size", 32, "--steps", 1, "--batch", 1, "--workers", 0, "--device", "cpu")
    assert "3 images on cpu" in run("fine_tune", faces, "--out", "mine", *sizes)
    assert isinstance(showface.load_model("mine/model"), showface.MDRNets)
    with pytest.raises(FileExistsError, match="--resume"):
        run("fine_tune", faces, "--out", "mine", *sizes)
    assert "3 images on cpu" in run("fine_tune", faces, "--out", "mine", "--resume")


def test_modules_in_your_network(run):
    assert "step 1: L1 in the hole" in run("modules_in_your_network", "--steps", 2)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_one_operator(run, chosen):
    printed = run("one_operator", "--tokens", 64, "--backend", chosen)
    assert "known tokens get zeros: True" in printed
    errors = [float(line.split()[-1]) for line in printed.splitlines() if "largest relative error" in line]
    assert len(errors) == 5
    assert max(errors) < 1e-4


def test_diffusers_unet(run):
    pytest.importorskip("diffusers")  # not in the extra `test`: only this example needs it
    printed = run("diffusers_unet", "--steps", 2)
    assert "it depends on known tokens: True, on others in the hole: False" in printed
    assert float(printed.split("gradient of the keys ")[1].split()[0]) > 0
