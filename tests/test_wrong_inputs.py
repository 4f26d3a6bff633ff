"""What a user can give wrongly: it works, or one clear sentence says what to do. Nothing hangs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import showface as package
from showface import Inpainter, MDRNets, inpaint, load_model
from showface import evaluation as ev
from showface.data import grow_hole, read_image, read_mask, read_photo, save_photo
from showface.data.photo import OUTPUT_FORMATS, encode_photo, output_format
from showface.data.urls import expand_urls, open_url

from support.pictures import noise, save_faces

HOLE = np.zeros((40, 32), dtype=np.bool_)
HOLE[10:20, 5:25] = True


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    Image.fromarray(HOLE).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


# Models.


def test_a_model_by_name_or_folder(folder, model):
    expected = inpaint(noise(), HOLE, model=model, faces=False)
    for given in (folder, str(folder)):
        assert inpaint(noise(), HOLE, model=given, faces=False) == expected
    assert Inpainter("psnr", faces=False).model.config == load_model("psnr").config
    with pytest.raises(FileNotFoundError, match=r"no config.json in nowhere: a model is a folder with"):
        inpaint(noise(), HOLE, model="nowhere")


@pytest.mark.parametrize("given", [3, {"a": 1}, torch.nn.Linear(1, 1)], ids=["number", "state dict", "module"])
def test_what_is_no_model(given):
    with pytest.raises(TypeError, match=r"model must be a network of showface.load_model, or the folder .*, got "):
        Inpainter(given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_other_dtypes(model, dtype):
    with pytest.raises(ValueError, match=r"the model is in \w+, and photos are filled in float32: call model.float()"):
        Inpainter(model.to(dtype))


@pytest.mark.parametrize("name", ["meta", "nonsense", "cuda:99"])
def test_devices(folder, model, name):
    for use in (lambda: load_model(folder, name), lambda: Inpainter(model, device=name)):
        with pytest.raises(ValueError, match=f"device {name} can't be used: "):
            use()


def test_a_compiled_model_is_a_model(model):
    compiled = torch.compile(model, backend="eager")
    assert Inpainter(compiled, faces=False).size == model.config.image_size


# Images.


@pytest.mark.parametrize("shape", [(40, 32, 3), (40, 32)], ids=str)
def test_arrays_are_images(model, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = inpaint(Image.fromarray(array), HOLE, model=model, faces=False)
    for given in (array, array[::-1][::-1]):
        assert inpaint(given, HOLE, model=model, faces=False) == expected
    assert read_photo(array).rgb == read_image(array)


@pytest.mark.parametrize(
    "given",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_other_arrays(given):
    for read in (read_image, read_mask, read_photo):
        with pytest.raises(TypeError, match=r"an image array must be uint8 \(H, W, 3\) or \(H, W\), got "):
            read(given)


@pytest.mark.parametrize("given", [torch.zeros(3, 4, 4), None, 3, [[0]]], ids=["tensor", "None", "number", "list"])
def test_what_is_no_image(given):
    for read in (read_image, read_mask, read_photo):
        with pytest.raises(TypeError, match=r"an image must be a path, an open file, a PIL image or a uint8 array"):
            read(given)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "LA", "RGBX"])
def test_every_mode(model, mode):
    image = noise().convert(mode) if mode != "LA" else noise().convert("L").convert("LA")
    assert read_photo(image).rgb == read_image(image)
    assert read_mask(image).shape == (40, 32)
    assert inpaint(image, HOLE, model=model, faces=False).size == (32, 40)


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path / "s"):
            for read in (read_image, read_mask, read_photo):
                with pytest.raises(OSError, match="it is no regular file"):
                    read(path)
            with pytest.raises(OSError, match="it is no regular file"):
                open_url(str(path))


@pytest.mark.parametrize("form", ["16 bits", "colour", "palette", "1 in 8 bits, half transparent"])
def test_a_dark_mask_says_its_brightest_value(tmp_path, form):
    ones = HOLE.astype(np.uint8)
    image = {
        "16 bits": Image.fromarray(ones.astype(np.uint16)),
        "colour": Image.fromarray(np.stack([ones] * 3, axis=-1)),
        "palette": Image.new("P", (32, 40)),
        "1 in 8 bits, half transparent": Image.merge("LA", [Image.fromarray(ones), Image.new("L", (32, 40), 128)]),
    }[form]
    if form == "palette":
        image = Image.fromarray(ones).convert("P")
        image.putpalette([0, 0, 0, 1, 1, 1])
    image.save(tmp_path / "mask.png")
    white = 65535 if form == "16 bits" else 255
    with pytest.warns(UserWarning, match=rf"mask .*mask.png is empty: its brightest value is 1, and white is {white}"):
        assert not read_mask(tmp_path / "mask.png").any()


@pytest.mark.parametrize(
    ("colour", "message"),
    [
        ((255, 0, 0), "it is coloured, and the brightest grey level of its colours is 76: holes must be white"),
        ((255, 255, 255, 0), "what is white in it is transparent"),
    ],
)
def test_an_empty_mask_of_bright_samples_says_why(colour, message):
    mask = Image.new("RGB" if len(colour) == 3 else "RGBA", (32, 40))
    mask.paste(colour, (5, 5, 20, 20))
    with pytest.warns(UserWarning, match=f"^the mask is empty: {message}"):
        assert not read_mask(mask).any()


@pytest.mark.parametrize("pixels", [1000, 2**31, 10**30])
def test_a_hole_grows_by_any_number(pixels):
    assert grow_hole(HOLE, pixels).all()
    assert not grow_hole(np.zeros_like(HOLE), pixels).any()


def test_sizes_that_would_fill_the_memory(model, tmp_path):
    with pytest.raises(ValueError, match="size must be at most 4096 pixels, got 1000000000"):
        Inpainter(model, size=10**9)
    with pytest.raises(ValueError, match="size must be at most 4096 pixels, got 1000000000"):
        ev.run_evaluation({"copy": copy}, [save_faces(tmp_path / "faces")], tmp_path / "out", size=10**9)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        ev.run_evaluation({"copy": copy}, [tmp_path / "faces"], tmp_path / "out", seed=-1)
    for size in (16.0, True, "32"):
        with pytest.raises(TypeError, match="size must be an integer, got "):
            Inpainter(model, size=size)
    assert Inpainter(model, size=np.int64(32)).size == 32


# Results.


@pytest.mark.parametrize("suffix", [".ico", ".icns", ".gif", ".eps", ".pdf", ".tga", ".h5", ".mpo", ".xbm"])
def test_formats_that_can_not_hold_a_result(showface, folder, photo, mask, suffix, monkeypatch):
    monkeypatch.setattr(MDRNets, "forward", None)  # it must not run
    code, _, err = showface("inpaint", "--no-faces", photo, mask, "-o", f"out{suffix}", "--model", folder)
    assert code == 1
    assert err.startswith("error: a result can't be saved as ")
    assert ".png, .jpg, .webp" in err
    assert not list(Path.cwd().iterdir())


@pytest.mark.filterwarnings("ignore:out.* can't hold what the photo carried")
@pytest.mark.parametrize("form", OUTPUT_FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_formats_that_hold_a_result(tmp_path, form, mode):
    if form not in Image.SAVE:
        pytest.skip(f"this build of Pillow can't write {form}")
    deep = Image.fromarray(np.asarray(noise().convert("L")).astype(np.uint16) * 257)
    like = read_photo(deep if mode == "I;16" else noise().convert(mode))
    suffix = next(suffix for suffix, name in Image.registered_extensions().items() if name == form)
    save_photo(like.rgb, tmp_path / f"out{suffix}", like, hole=HOLE)
    written = read_image(tmp_path / f"out{suffix}")
    assert written.size == (32, 40)
    if form not in ("JPEG", "AVIF", "HEIF"):
        assert np.array_equal(np.asarray(written), np.asarray(like.rgb))
    with pytest.raises(ValueError, match="unknown image format 'GIF': use one of PNG"):
        encode_photo(like.rgb, "GIF")


def test_a_side_that_the_format_can_not_hold(tmp_path):
    with pytest.raises(ValueError, match=r"WEBP holds sides of up to 16383 pixels, and the photo is 20000x10"):
        output_format(tmp_path / "x.webp", (20000, 10))
    assert output_format(tmp_path / "x.png", (20000, 10)) == "PNG"


def test_a_folder_is_no_output(showface, folder, photo, mask):
    Path("out.png").mkdir()
    code, _, err = showface("inpaint", photo, mask, "-o", "out.png", "--overwrite", "--model", folder)
    assert (code, err) == (1, "error: out.png is a folder: give -o the name of a file\n")


# Shards.


@pytest.mark.parametrize("pattern", ["a-{0..99999999}.tar", "{0..9999}{0..9999}", "{a,b}" * 19])
def test_patterns_for_too_many_files(pattern):
    with pytest.raises(ValueError, match="stands for more than 100,000 files"):
        expand_urls(pattern)
    with pytest.raises(ValueError, match="has more than 20 pairs of braces"):
        expand_urls("{a,b}" * 1000)
    assert len(expand_urls("a-{000..999}.tar")) == 1000


def test_a_url_whose_package_is_missing(monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def fail(url):
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(ModuleNotFoundError, match=r"http://x/a.tar needs more of fsspec: install 'fsspec\[http\]'"):
        open_url("http://x/a.tar")


# Evaluations.


def copy(image, hole):
    return image


def test_an_evaluation_without_its_broken_photos(tmp_path):
    faces = save_faces(tmp_path / "faces")
    (faces / "0.png").write_bytes(b"broken")
    result = ev.run_evaluation({"copy": copy}, [faces], tmp_path / "out", size=32)
    assert list(result.failed) == ["faces/0.png"]
    assert "cannot read image" in result.failed["faces/0.png"]
    assert {score.image for score in result.scores} == {"1.png", "2.png"}
    assert len(result.pairs) == len(result.scores) == 6
    for path in faces.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no photo can be read: cannot read image"):
        ev.run_evaluation({"copy": copy}, [faces], tmp_path / "out", size=32, overwrite=True)


def test_the_command_names_broken_photos(showface, tmp_path):
    faces = save_faces(tmp_path / "faces")
    (faces / "0.png").write_bytes(b"broken")
    code, out, err = showface(
        "evaluate", "--images", faces, "--baseline", "telea", "-o", tmp_path / "out", "--size", 32
    )
    assert code == 1
    assert "written to" in out
    assert err.splitlines()[0].startswith("failed: faces/0.png: cannot read image")
    assert err.splitlines()[-1] == "error: 1 photos could not be scored: faces/0.png"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8(tmp_path):
    faces = save_faces(tmp_path / os.fsdecode(b"caf\xe9"), count=2)
    (faces / "0.png").rename(faces / os.fsdecode(b"ren\xe9.png"))
    result = ev.run_evaluation({"copy": copy}, [faces], tmp_path / "out", size=32)
    assert {score.image for score in result.scores} == {"1.png", r"ren\xe9.png"}
    assert r"ren\xe9.png" in (tmp_path / "out" / "manifest.csv").read_text()


def test_a_set_called_all(tmp_path):
    both = [save_faces(tmp_path / name, count=1) for name in ("all", "some")]
    with pytest.raises(ValueError, match="one of several folders of images is called 'all'"):
        ev.run_evaluation({"copy": copy}, both, tmp_path / "out", size=32)
    result = ev.run_evaluation({"copy": copy}, both[:1], tmp_path / "out", size=32)
    assert {row.image_set for row in result.rows} == {"all"}
    again = [*result.scores, *(type(score)(**{**score.__dict__, "image_set": "some"}) for score in result.scores)]
    with pytest.raises(ValueError, match="no image set may be called 'all'"):
        ev.summarise(again)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"\x80\x02}q\x00.", b"[1]"])
def test_weights_of_lpips_that_are_something_else(tmp_path, content):
    pytest.importorskip("torchmetrics")
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match="does not hold torchvision's AlexNet: "):
        ev.LPIPS(tmp_path / "weights.pth")
    torch.save([1, 2], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="does not hold torchvision's AlexNet: "):
        ev.LPIPS(tmp_path / "weights.pth")


# The command.


def test_version(showface):
    assert showface("--version") == (0, f"showface {package.__version__}\n", "")


def test_home(showface, folder, photo, mask, monkeypatch):
    monkeypatch.setenv("HOME", str(photo.parent))
    code, out, _ = showface("inpaint", "--no-faces", "~/photo.jpg", "~/mask.png", "-o", "x.png", "--model=~/model")
    assert (code, out) == (1, "")
    code, _, err = showface("inpaint", "--no-faces", "~/photo.png", "~/mask.png", "--out=~/x.png", "--model", "~/model")
    assert (code, err) == (0, "")
    assert (photo.parent / "x.png").is_file()


def test_a_missing_package_of_ours_is_one_line(showface, monkeypatch):
    def fail():
        raise ModuleNotFoundError("it needs fsspec: install 'showface[shards]'")

    monkeypatch.setattr("showface.info.describe", fail)
    assert showface("info") == (1, "", "error: it needs fsspec: install 'showface[shards]'\n")


def test_a_terminal_of_ascii_only(tmp_path):
    environment = os.environ | {
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "showface.cli", "mask", os.fsdecode(b"\xc3\xa9t\xe9.png"), "--alpha"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(b"error: ")
