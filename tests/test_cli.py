"""The command `showface`: what it prints, what it writes, and how it fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from showface import MDRNets, MDRNetsConfig
from showface.data import write_shards
from showface.registry import about_model, model_name

from support.pictures import save_faces
from support.runs import SMALL, entries


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return next(save_faces(tmp_path / "photo", count=1, side=50).iterdir())


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    hole = np.zeros((50, 50), dtype=np.uint8)
    hole[10:30, 5:30] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def assert_fails(result: tuple[int, str, str], message: str) -> None:
    """The command prints only one line, which says what is wrong, and writes no file."""
    code, out, err = result
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(Path.cwd().iterdir())


class TestInpaint:
    @pytest.mark.parametrize("name", ["result.png", "result.jpg", "result.webp", "RESULT.TIF"])
    def test_writes_the_result(self, showface, folder, photo, mask, name):
        code, out, err = showface("inpaint", "--no-faces", photo, mask, "--out", name, "--model", folder)
        assert (code, err) == (0, "")
        assert "hole: 20.0% of 50x50" in out
        assert f"result: {Path(name).resolve()}" in out
        assert [path.name for path in Path.cwd().iterdir()] == [name]
        result, before = (np.asarray(Image.open(path)) for path in (name, photo))
        assert result.shape == (50, 50, 3)
        if name == "result.png":
            known = np.asarray(Image.open(mask)) == 0
            assert np.array_equal(result[known], before[known])

    def test_options(self, showface, folder, photo, mask):
        black = Image.eval(Image.open(mask), lambda value: 255 - value)
        black.save(mask.with_name("black.png"))
        common = ("--model", folder, "--size", 16)
        showface("inpaint", "--no-faces", photo, mask, "-o", "white.png", *common)
        showface(
            "inpaint",
            "--no-faces",
            photo,
            mask.with_name("black.png"),
            "-o",
            "black.png",
            "--mask-polarity",
            "black",
            *common,
        )
        assert np.array_equal(*(np.asarray(Image.open(name)) for name in ("white.png", "black.png")))

    def test_names_with_brackets(self, showface, folder, photo, mask):
        """Brackets in file names are not read as markup."""
        _, out, _ = showface("inpaint", "--no-faces", photo, mask, "-o", "face[copy].png", "--model", folder)
        assert "face[copy].png" in out
        Path("face[copy].png").unlink()
        for name in ("no[bold]face.png", "no[/x]face.png"):
            assert_fails(showface("inpaint", "--no-faces", name, mask, "-o", "x.png", "--model", folder), name)

    def test_warnings_become_notes(self, showface, folder, photo, mask):
        Image.new("L", (50, 50)).save(mask)
        code, _, err = showface("inpaint", "--no-faces", photo, mask, "-o", "result.png", "--model", folder)
        assert code == 0
        assert err.splitlines() == ["note: the mask is empty: nothing to fill, the photo is returned unchanged"]
        assert np.array_equal(np.asarray(Image.open("result.png")), np.asarray(Image.open(photo)))

    def test_failures(self, showface, folder, photo, mask):
        def run(image=photo, out="result.png", **options):
            options = {"model": folder, **options}
            extra = [x for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]
            return showface("inpaint", "--no-faces", image, mask, "-o", out, *extra)

        assert_fails(run(image="nowhere.png"), "there is no photo or folder nowhere.png")
        assert_fails(run(image="nowhere", out="out"), "there is no photo or folder nowhere")
        assert_fails(run(batch=2), "--batch does not belong to one photo")
        assert_fails(run(image=folder / "config.json"), "cannot read image")
        assert_fails(run(out="result.xyz"), "unknown image format 'result.xyz'")
        assert_fails(run(out="missing/result.png"), "there is no folder missing")
        assert_fails(run(model="nowhere"), "no config.json in nowhere")
        assert_fails(run(size=3), "size must be at least 16 pixels, got 3")
        assert_fails(run(mask_polarity="blue"), "got 'blue'")
        assert_fails(run(device="nonsense"), "device nonsense can't be used")
        assert_fails(run(device="cuda:99"), "device cuda:99 can't be used")

    def test_a_failing_run_leaves_the_old_result(self, showface, folder, photo, mask, monkeypatch):
        Path("result.png").write_bytes(b"old")

        def fail(self, file, **options):
            Path(file).write_bytes(b"half of it")
            raise OSError("no space left on device")

        monkeypatch.setattr(Image.Image, "save", fail)
        code, _, err = showface(
            "inpaint", "--no-faces", photo, mask, "-o", "result.png", "--model", folder, "--overwrite"
        )
        assert (code, err) == (1, "error: no space left on device\n")
        assert [path.name for path in Path.cwd().iterdir()] == ["result.png"]
        assert Path("result.png").read_bytes() == b"old"


class TestDemo:
    def test_writes_a_sheet(self, showface, folder):
        code, out, err = showface("demo", "--model", folder)
        assert (code, err) == (0, "")
        assert "input | mask | result, a hole of 2" in out
        assert Image.open("showface-demo.png").size == (3 * 256 + 2 * 8, 256)

    def test_failure(self, showface, folder):
        assert_fails(showface("demo", "--model", folder, "--out", "sheet"), "unknown image format 'sheet'")


class TestTrain:
    def test_one_command_starts_and_resumes(self, showface, faces):
        command = ["train", "--data", faces, "--out", "again", "--resume-if-any", *SMALL, "steps=2"]
        assert showface(*command)[0] == 0
        code, out, _ = showface(*command[:-1], "steps=3")
        assert code == 0
        assert "resumed after step 2" in out

    def test_on_shards(self, showface, faces):
        write_shards(faces, "shards", count_per_shard=2)
        code, out, err = showface("train", "--data", "shards/*.tar", "--out", "run", *SMALL, "steps=2")
        assert (code, err) == (0, "")
        assert "3 images on cpu" in out
        assert "step 2 of 2  loss " in out  # there is no terminal
        both = ("train", "--data", "shards/*.tar", "--data", faces, "--out", "both", *SMALL)
        code, _, err = showface(*both)
        assert code == 1
        assert "folders and shards: name either folders or shards" in err

    def test_trains_resumes_and_inpaints(self, showface, faces, photo, mask):
        code, out, err = showface("train", "--out", "run", "--data", faces, *SMALL, "steps=2", "save_every=1")
        assert (code, err) == (0, "")
        assert "3 images on cpu: 0 with parsing labels; left out: 0 too small, 0 unreadable" in out
        assert f"model: {Path('run/model').resolve()}" in out

        again = ("train", "--out", "run", "--config", "run/config.yaml")
        code, out, err = showface(*again)
        assert (code, len(err.splitlines())) == (1, 1)
        assert err.startswith("error: run holds a training run already")
        code, out, _ = showface(*again, "--resume", "steps=3")
        assert code == 0
        assert "resumed after step 2" in out
        assert [entry["step"] for entry in entries(Path("run"))] == [2, 3]
        assert showface("inpaint", "--no-faces", photo, mask, "-o", "result.png", "--model", "run/model")[0] == 0

    def test_failures(self, showface, faces):
        def run(*arguments):
            return showface("train", "--out", "run", *arguments)

        assert_fails(run(*SMALL), "no training images: name either folders or shards, with --data")
        assert_fails(run("--data", "nowhere"), "nowhere")
        assert_fails(run("--data", faces, "bach=3"), "bach")
        assert_fails(run("--data", faces, "batch=some"), "batch")
        assert_fails(run("--data", faces, "--config", "nowhere.yaml"), "nowhere.yaml")
        assert_fails(run("--data", faces, "--resume", *SMALL), "nothing to resume")
        assert_fails(run("--data", faces, *SMALL, "device=nonsense"), "nonsense")


class TestEvaluate:
    def test_models_of_runs_have_the_names_of_the_runs(self, showface, folder, faces):
        for run in ("a", "b"):
            shutil.copytree(folder, Path("runs") / run / "model")
        models = ("--model", "runs/a/model", "--model", "runs/b/model")
        code, *_ = showface("evaluate", "--images", faces, "--out", "scores", "--size", 32, "--limit", 1, *models)
        assert code == 0
        scores = json.loads(Path("scores/results.json").read_text())["scores"]
        assert {score["system"] for score in scores} == {"a", "b"}
        assert about_model("runs/a/model").name == "a"
        assert model_name("runs/a/best") == "a-best"

    def test_scores_models_side_by_side(self, showface, folder, faces):
        again = folder.rename(folder.with_name("mine"))
        code, out, _ = showface(
            "evaluate",
            "--images",
            faces,
            "--out",
            "scores",
            "--size",
            32,
            "--limit",
            2,
            "--model",
            again,
            "--model",
            "psnr",
        )
        assert code == 0
        assert "mine" in out
        assert "showface psnr" in out
        assert "40-60%" in out
        assert out.split("written to ")[1].strip() == str(Path("scores").resolve())
        assert len(json.loads(Path("scores/results.json").read_text())["scores"]) == 12

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--baseline", "magic"], "baseline must be one of telea, navier-stokes, got 'magic'"),
            (["--model", "nowhere"], "no config.json in nowhere"),
            (["--lpips-weights", "nowhere.pth"], "there is no file nowhere.pth"),
            (["--fid-weights", "nowhere.pth"], "there is no file nowhere.pth"),
            (["--masks", "nowhere"], "nowhere"),
            (["--device", "nonsense"], "device nonsense can't be used"),
        ],
    )
    def test_failures(self, showface, faces, options, message):
        assert_fails(showface("evaluate", "--images", faces, "--out", "scores", *options), message)


class TestMemory:
    def test_writes_a_picture(self, showface, folder, faces):
        code, out, _ = showface("memory", faces, "--model", folder, "--slots", 3, "--limit", 2)
        assert code == 0
        assert "with 1 of 3 photos" in out or "with 2 of 3 photos" in out
        with Image.open("showface-memory.png") as picture:
            assert picture.width > 3 * 72

    def test_label_images_are_no_faces(self, showface, folder, faces, tmp_path):
        shutil.copytree(faces, tmp_path / "set" / "faces")
        shutil.copytree(faces, tmp_path / "set" / "faces_parsing")
        code, out, _ = showface("memory", tmp_path / "set", "--model", folder, "--slots", 1, "--limit", 1)
        assert code == 0
        assert "with 1 of 3 photos" in out

    def test_failures(self, showface, folder, faces, tmp_path):
        assert_fails(showface("memory", "nowhere", "--model", folder), "nowhere")
        (tmp_path / "empty").mkdir()
        assert_fails(showface("memory", tmp_path / "empty", "--model", folder), "no images (")
        MDRNets(MDRNetsConfig(use_refinement=False)).save_pretrained(tmp_path / "coarse")
        assert_fails(showface("memory", faces, "--model", tmp_path / "coarse"), "no memory to inspect")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *(
            (f"app --static site {option}", f"{option.split()[0]} does not belong to --static")
            for option in ("--host ::1", "--port 1", "--no-open", "--token a", "--allow-host a", "--device cpu")
        ),
        ("app --static site --precision bf16", "--precision does not belong to --static"),
        ("app --webgpu", "--webgpu does not belong to an app that is served"),
        ("app --overwrite", "--overwrite does not belong to an app that is served"),
        *(
            (f"export --faces -o y.onnx {option}", f"{option.split()[0]} does not belong to --faces")
            for option in ("--model psnr", "--half", "--compile", "--detail 1", "--detail-input", "--device cpu")
        ),
        ("export -o x.onnx --device cpu", "--device does not belong to an .onnx file"),
        ("export -o x.pt2 --no-check", "--no-check does not belong to a .pt2 file"),
        ("export -o x.aoti.pt2 --check", "--check does not belong to a .pt2 file"),
        ("inpaint a.png -o b.png --paint red --mask-polarity black", "--mask-polarity does not belong to --paint"),
        ("mask a.png --alpha --mask-polarity white", "--mask-polarity does not belong to --alpha"),
    ],
)
def test_options_that_would_be_ignored_are_refused(showface, command, message):
    assert_fails(showface(*command.split()), message)


def test_info(showface):
    code, out, err = showface("info")
    assert (code, err) == (0, "")
    for word in ("Versions", "Devices", "Extension", "memory_read", "masked_correlation", "reference"):
        assert word in out


def test_help_lists_the_commands(showface):
    code, out, _ = showface("--help")
    assert code == 0
    for command in ("demo", "inpaint", "mask", "align", "train", "evaluate", "memory", "info"):
        assert command in out


def test_usage_errors_are_told_by_the_parser(showface):
    code, _, err = showface("inpaint", "--no-faces", "photo.png")
    assert code == 2
    assert "Missing option" in err


def test_as_a_process(folder, photo, tmp_path):
    """Exit codes in a shell, and no traceback."""
    arguments = [photo, "nowhere.png", "-o", tmp_path / "x.png", "--model", folder]
    command = [sys.executable, "-m", "showface.cli", "inpaint", "--no-faces", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "nowhere.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.png").exists()
