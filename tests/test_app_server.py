"""The app's endpoint: answers, notes, jobs, cancellation, the guard, and that nothing reaches the disk."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")

import showface
from showface import app as app_package
from showface import registry
from showface.app.docs_page import docs_page
from showface.app.server import create_app
from showface.app.work import disposition, load_models, stem
from showface.models import network
from showface.models.interpolation import save_difference

from support.app import (
    FIELDS,
    MASK,
    PHOTO,
    SIZE,
    Client,
    box_mask,
    encode_form,
    encoded,
    fake_models,
    picture,
    running,
    wait_until,
    with_size,
)

DEMO = Path(showface.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="module")
def client():
    with running(fake_models()) as client:
        yield client


def test_a_mask_is_filled(client: Client):
    answer = client.post("/api/inpaint", FIELDS)
    hole = np.asarray(box_mask()) > 0
    pixels = np.asarray(answer.image)
    assert (pixels[hole] == (10, 20, 30)).all()
    np.testing.assert_array_equal(pixels[~hole], np.asarray(picture())[~hole])
    headers = answer.headers
    assert headers["content-type"] == "image/png"
    assert headers["x-showface-faces"] == "1"
    assert float(headers["x-showface-hole-ratio"]) == pytest.approx(hole.mean())
    assert int(headers["x-showface-milliseconds"]) >= 0
    assert headers["x-showface-notes"] == "[]"
    assert headers["content-disposition"] == 'attachment; filename="face-filled.png"'


@pytest.mark.parametrize("field", [{"paint": "#ff0000"}, {"alpha": "true"}])
def test_paint_and_transparency(client: Client, field: dict[str, str]):
    image = picture("RGBA" if "alpha" in field else "RGB")
    image.paste((255, 0, 0, 0)[: len(image.mode)], (8, 8, 24, 20))
    answer = client.post("/api/inpaint", {"photo": encoded(image), **field})
    assert np.asarray(answer.image)[12, 12].tolist()[:3] == [10, 20, 30]


def test_invert_and_grow(client: Client):
    ratio = {}
    for name, more in {"plain": {}, "grown": {"grow": "2"}, "inverted": {"invert": "true"}}.items():
        ratio[name] = float(client.post("/api/inpaint", FIELDS | more).headers["x-showface-hole-ratio"])
    assert ratio["plain"] < ratio["grown"]
    assert ratio["inverted"] == pytest.approx(1 - ratio["plain"], abs=1e-6)


def test_the_photos_own_format_with_what_it_carried(client: Client):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    photo = encoded(picture(), "JPEG", quality=60, exif=exif, dpi=(300, 300))
    answer = client.post("/api/inpaint", FIELDS | {"photo": ("a.jpg", photo), "format": "same"})
    result = answer.image
    assert (result.format, result.info["dpi"], result.getexif()[0x010F]) == ("JPEG", (300, 300), "a camera")
    assert result.quantization == Image.open(io.BytesIO(photo)).quantization
    assert answer.headers["content-type"] == "image/jpeg"
    assert 'filename="a-filled.jpg"' in answer.headers["content-disposition"]


def test_a_mask_fits_the_upright_photo(client: Client):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(picture(), "JPEG", exif=exif)
    turned = SIZE[::-1]
    assert client.post("/api/inpaint", {"photo": photo, "mask": encoded(box_mask(turned))}).image.size == turned
    answer = client.post("/api/inpaint", {"photo": photo, "mask": MASK})
    assert (answer.status, answer.detail) == (
        400,
        "the mask is 48x32 and the photo 32x48: give a mask of the photo's upright size",
    )


def test_notes_say_what_was_warned_of(client: Client):
    empty = client.post("/api/inpaint", FIELDS | {"mask": encoded(Image.new("L", SIZE, 1))})
    (note,) = json.loads(empty.headers["x-showface-notes"])
    assert note == "mask file holds only the values 0 and 1: they are read as black and white"
    gif = client.post("/api/inpaint", FIELDS | {"photo": encoded(picture("P"), "GIF"), "format": "same"})
    assert gif.image.format == "PNG"
    assert json.loads(gif.headers["x-showface-notes"]) == ["GIF can't hold the result as it is: it is saved as PNG"]
    lost = client.post("/api/inpaint", FIELDS | {"photo": encoded(picture("RGB"), "BMP", dpi=(72, 72))})
    assert lost.headers["x-showface-notes"] == "[]"


def test_warnings_of_other_packages_are_no_notes(client: Client):
    answer = client.post("/api/inpaint", FIELDS | {"mask": encoded(Image.new("L", SIZE))})  # the fake one warns of it
    assert (answer.status, answer.headers["x-showface-notes"]) == (200, "[]")


def test_faces(client: Client):
    answer = client.post("/api/faces", {"photo": PHOTO})
    assert answer.json == {"width": 48, "height": 32, "faces": []}


def test_models_and_health(client: Client):
    models = client.get("/api/models").json
    assert [model["name"] for model in models["models"]] == ["default", "other"]
    assert models["default"] == "default"
    assert models["models"][0] == {
        "name": "default",
        "description": "the default one",
        "licence": "free",
        "detail": None,
    }
    assert client.get("/api/health").json == {"status": "ok", "version": showface.__version__}


def test_every_parameter_and_response_is_described(client: Client):
    schema = client.get("/api/openapi.json").json
    assert set(schema["paths"]) == {
        "/api/inpaint",
        "/api/faces",
        "/api/jobs/{job}",
        "/api/models",
        "/api/health",
    }
    for path in schema["paths"].values():
        for call in path.values():
            assert call["description"]
            assert all(each["description"] for each in call.get("parameters", []))
            for content in call.get("requestBody", {}).get("content", {}).values():
                assert all(field["description"] for field in content["schema"]["properties"].values())
            assert {"401", "403"} <= set(call["responses"])
            assert all(answer["description"] for answer in call["responses"].values())
    for model in schema["components"]["schemas"].values():
        if model["title"] not in ("ValidationError", "HTTPValidationError"):
            assert all(field.get("description") for field in model["properties"].values()), model["title"]


def test_the_docs_page_asks_no_other_server(client: Client):
    page = client.get("/api/docs").body.decode()
    assert "POST /api/inpaint" in page
    assert re.findall('(?:src|href)="([^"]*)"', page) == ["docs.css", "openapi.json"]
    assert "<script" not in page
    assert "style=" not in page
    assert client.get("/api/docs.css").headers["content-type"].startswith("text/css")
    assert "<b>" not in docs_page({"info": {"title": "<b>"}, "paths": {}})


def test_the_page_and_its_files(tmp_path: Path):
    static = tmp_path / "static"
    (static / "onnx").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html>")
    (static / "app.js").write_text("export {}")
    (static / "onnx" / "a.mjs").write_text("export {}")
    (static / "notes.py").write_text("")
    (tmp_path / "secret.txt").write_text("secret")
    (static / "link.txt").symlink_to(tmp_path / "secret.txt")
    with running(fake_models(), static=static) as client:
        assert client.get("/").body == b"<!doctype html>"
        assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
        assert client.ask("HEAD", "/").body == b""
        assert client.get("/static/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
        assert client.get("/static/onnx/a.mjs").status == 200
        for path in ("notes.py", "link.txt", "../secret.txt", "%2e%2e/secret.txt", "", "onnx", "engine-config.json"):
            assert client.get(f"/static/{path}").status == 404
            assert client.get(f"/{path}/").status == 404


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"photo": PHOTO}, 422, "mark the hole in one way, by mask, paint or alpha, and none is given"),
        ({"mask": MASK}, 422, "lacks the field photo"),
        ({"photo": b"", "mask": MASK}, 422, "the photo is empty"),
        ({"photo": PHOTO, "mask": MASK, "paint": "red"}, 422, "not mask and paint"),
        ({"photo": PHOTO, "mask": MASK, "grow": "-1"}, 422, "whole number of pixels, 0 to 100"),
        ({"photo": PHOTO, "mask": MASK, "grow": "9" * 900}, 422, "whole number of pixels"),
        ({"photo": PHOTO, "mask": MASK, "faces": "maybe"}, 422, "faces must be true or false"),
        ({"photo": PHOTO, "mask": MASK, "model": "../../etc"}, 422, "choose one of default, other"),
        ({"photo": PHOTO, "mask": MASK, "format": "exe"}, 422, "png or same"),
        ({"photo": PHOTO, "mask": MASK, "job": "a/b"}, 422, "letters, digits"),
        ({"photo": PHOTO, "mask": MASK, "x": "y"}, 422, "unknown field"),
        ({"photo": PHOTO, "mask": MASK, "paint": "x" * 2000}, 422, "more than 1024 bytes"),
        ({"photo": PHOTO, "paint": "no colour"}, 422, "must be a colour"),
        ({"photo": PHOTO, "paint": "rgb(300,0,0)"}, 422, "must be a colour"),
        ({"photo": PHOTO, "alpha": "true"}, 400, "no transparency"),
        ({"photo": b"no image", "mask": MASK}, 415, "no image that this server reads"),
        ({"photo": PHOTO, "mask": b"no image"}, 415, "the mask is no image"),
        ({"photo": PHOTO[:-200], "mask": MASK}, 400, "the photo is broken or cut off"),
        ({"photo": PHOTO, "mask": encoded(box_mask((32, 32)))}, 400, "the mask is 32x32 and the photo 48x32"),
    ],
)
def test_wrong_forms(client: Client, fields: dict[str, str | bytes], status: int, says: str):
    answer = client.post("/api/inpaint", fields)
    assert answer.status == status
    assert says in answer.detail


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body[:-6], "cut off"),
        (lambda body: body.replace(b'"mask"', b'"photo"'), "the field photo twice"),
        (lambda body: body.replace(b'"mask"', b'"' + b"m" * 200 + b'"'), "unknown field"),
        (lambda body: body.replace(b'"mask"', b'"mask"' + (b"\r\nX: " + b"m" * 2500) * 2), "too long headers"),
        (lambda body: body.replace(b"name=", b"nom="), "unknown field"),
        (lambda body: b"\0" + body, "broken"),
    ],
)
def test_broken_forms(client: Client, change: Callable[[bytes], bytes], says: str):
    body, kind = encode_form(FIELDS)
    answer = client.ask("POST", "/api/inpaint", change(body), {"Content-Type": kind})
    assert (answer.status, says in answer.detail) == (422, True), answer.detail


def test_names_of_results():
    assert [stem(name) for name in (None, "", "a.b.png", "../../etc/passwd", "C:\\x\\y.jpg", "\x00\n.png", "...")] == [
        "photo",
        "photo",
        "a.b",
        "passwd",
        "y",
        "png",
        "photo",
    ]
    assert len(stem("x" * 1000)) == 80
    assert disposition('na"me é.png') == "attachment; filename=\"na_me _.png\"; filename*=UTF-8''na%22me%20%C3%A9.png"


def test_models_by_folder(tmp_path: Path, model: showface.MDRNets):
    model.save_pretrained(tmp_path / "mine")
    models = load_models([str(tmp_path / "mine"), "default"])
    assert [(each.name, each.description[:7]) for each in models.values()] == [
        ("mine", "a saved"),
        ("default", "sharp: "),
    ]
    with pytest.raises(ValueError, match="two models have the name default"):
        load_models(["default", "default"])


def test_a_model_is_looked_up_once(monkeypatch: pytest.MonkeyPatch):
    looked_up = []
    find = registry.find_model

    def find_model(model: str | Path, revision: str | None = None) -> Path:
        looked_up.append(model)
        return find(model, revision)

    for module in (registry, network):
        monkeypatch.setattr(module, "find_model", find_model)
    (loaded,) = load_models(["psnr"]).values()
    assert [model for model in looked_up if not isinstance(model, Path)] == ["psnr"]
    smooth = showface.load_model("psnr").state_dict()
    assert all(torch.equal(x, smooth[name]) for name, x in loaded.with_faces.model.state_dict().items())


def test_detail(tmp_path: Path, model: showface.MDRNets):
    """Each job gets the weights that it asks for, or the usual ones, whatever the job before asked for."""
    sharp = deepcopy(model)
    for weight in sharp.parameters():
        weight.data += 0.02
    model.save_pretrained(tmp_path / "pair")
    model.save_pretrained(tmp_path / "plain")
    save_difference(tmp_path / "pair", sharp)
    form = {"photo": encoded(picture()), "mask": encoded(box_mask()), "faces": "false"}
    models = load_models([str(tmp_path / "pair"), str(tmp_path / "plain"), "psnr"])
    with running(with_size(models, 32)) as client:
        assert [about["detail"] for about in client.get("/api/models").json["models"]] == [1.0, None, None]
        for detail in ("0", "0.5", "", "1", "0.30000000000000004", "0"):
            answer = client.post("/api/inpaint", form | {"detail": detail})
            expected = showface.inpaint(
                picture(),
                box_mask(),
                model=tmp_path / "pair",
                faces=False,
                size=32,
                detail=float(detail) if detail else None,
            )
            assert np.array_equal(np.asarray(answer.image), np.asarray(expected)), detail
        for detail in ("2", "-0.1", "nan", "inf", "half", "0,5"):
            answer = client.post("/api/inpaint", form | {"detail": detail})
            assert (answer.status, answer.detail) == (422, "detail must be a number from 0 to 1, such as 0.5")
        answer = client.post("/api/inpaint", form | {"detail": "1", "model": "plain"})
        assert answer.status == 422
        assert answer.detail == "detail can't be chosen for plain, which has no difference.safetensors"
        answer = client.post("/api/inpaint", form | {"detail": "1", "model": "psnr"})
        assert (answer.status, answer.detail) == (422, "psnr is default with detail 0: choose default")


def test_a_missing_package_is_named(showface, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "showface.app.launch")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, error = showface("app")
    assert code == 1
    assert "install 'showface[app]'" in error
    assert "Traceback" not in error


def test_names_of_the_package():
    assert all(getattr(app_package, name) for name in app_package.__all__)
    with pytest.raises(AttributeError):
        app_package.nothing  # noqa: B018
    assert create_app(fake_models()).title == "showface"


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="signals of POSIX")
def test_the_command_fills_the_demo_and_stops_at_once():
    command = [sys.executable, "-m", "showface.cli", "app", "--no-open", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(showface.__file__).parents[1])}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = server.stdout.readline()
        found = re.fullmatch(r"showface runs at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C stops it\)\n", line)
        assert found, line + server.stderr.read()
        client = Client(int(found[1]))
        photo, mask = ((DEMO / f"{name}.png").read_bytes() for name in ("portrait", "mask"))
        answer = client.post("/api/inpaint", {"photo": photo, "mask": mask})
        assert answer.image.size == (256, 256)
        assert (answer.headers["x-showface-faces"], answer.headers["x-showface-notes"]) == ("1", "[]")
        assert len(client.post("/api/faces", {"photo": photo}).json["faces"]) == 1
        empty = client.post("/api/inpaint", {"photo": photo, "mask": encoded(Image.new("L", (256, 256)))})
        assert "the mask is empty" in json.loads(empty.headers["x-showface-notes"])[0]

        large = encoded(Image.open(io.BytesIO(photo)).resize((1500, 1500)))
        large_mask = encoded(Image.open(io.BytesIO(mask)).resize((1500, 1500)))
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(client.post, "/api/inpaint", {"photo": large, "mask": large_mask, "job": "large"})
            wait_until(lambda: client.get("/api/jobs/large").json["stage"] not in ("", "waiting", "reading"))
            server.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert server.wait(10) == 0
            assert time.monotonic() - began < 5
            assert task.result().status == 503
        assert server.stderr.read() == ""
    finally:
        server.kill()
        server.communicate()


def test_the_examples_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    text = (DEMO.parents[2] / "docs" / "app.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    curl = "\n".join(re.findall(r"^    ((?:A=|curl ).*)$", text, re.MULTILINE))
    for name in ("portrait.png", "mask.png"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    with running(fake_models()) as client:
        exec(python.replace(":7860", f":{client.port}"), {})
        assert capsys.readouterr().out == "1 faces;\n"
        filled = Path("filled.png").read_bytes()
        if shutil.which("curl"):
            Path("filled.png").unlink()
            script = curl.replace(":7860", f":{client.port}").replace("showface/assets/demo", str(DEMO))
            done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["width"] == 256
            assert Path("filled.png").read_bytes() == filled
