"""The engine's JavaScript computes what Pillow and the Python modules of the same names compute. Needs Node."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from showface import crops as python_crops
from showface.app.static_site import STATIC
from showface.enlargement import enlarge_fill
from showface.nn.fill import push_pull_fill

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")

RUN = """
import { readFileSync, writeFileSync } from "node:fs";
const read = (name) => JSON.parse(readFileSync(name));
const job = read("job.json");
const module = await import("./onnx/" + job.module);
const { Crop } = await import("./onnx/crops.js");
const types = { uint8: Uint8Array, float32: Float32Array };
const value = (x) => {
  if (x?.crop) return new Crop(...x.crop);
  if (!x?.type) return x;
  const bytes = readFileSync(x.file);
  const data = new types[x.type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  return x.flat ? data : { width: x.width, height: x.height, channels: x.channels, data };
};
const result = module[job.call](...job.arguments.map(value));
const outputs = job.outputs ? job.outputs.map((name) => result[name]) : [result];
const numbers = (out) => (Array.isArray(out) ? Int32Array.from(out.flat()) : out.data ?? out);
outputs.forEach((out, i) => writeFileSync(`out${i}`, Buffer.from(numbers(out).buffer)));
console.log(JSON.stringify(outputs.map(({ width, height }) => [width, height])));
"""


CANCEL = """
const config = { models: [{ name: "default", size: 256 }], files: {} };
globalThis.fetch = async () => ({ ok: true, json: async () => config });
globalThis.Worker = class { postMessage() {} }; // the networks never come
const { createEngine } = await import("./engine-onnx.js");
const engine = await createEngine();
const controller = new AbortController();
const stages = [];
const filling = engine.inpaint({ signal: controller.signal, onProgress: (stage) => stages.push(stage) });
const searching = engine.faces(null, controller.signal);
setTimeout(() => controller.abort());
const ends = await Promise.all([filling, searching].map((call) => call.catch((error) => error.name)));
console.log(JSON.stringify([...ends, ...stages]));
"""


class Node:
    """Calls functions of the modules. Arrays are pictures (H, W, 3) or holes (H, W), tensors are planes (C, H, W)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(STATIC / "onnx", folder / "onnx")
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "run.js").write_text(RUN)

    def __call__(self, module, call, *arguments, outputs=None, flat=()):
        job = {"module": module, "call": call, "outputs": outputs}
        job["arguments"] = [self.argument(i, x, i in flat) for i, x in enumerate(arguments)]
        (self.folder / "job.json").write_text(json.dumps(job))
        done = subprocess.run(["node", "run.js"], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [(self.folder / f"out{i}").read_bytes() for i in range(len(json.loads(done.stdout)))]

    def argument(self, i, x, flat):
        if isinstance(x, python_crops.Crop):
            return {"crop": [x.x, x.y, x.dx, x.dy, x.is_face]}
        if not isinstance(x, (np.ndarray, torch.Tensor)):
            return x
        planes = isinstance(x, torch.Tensor)
        array = x.numpy().astype(np.float32) if planes else x.astype(np.uint8)
        (self.folder / f"in{i}").write_bytes(array.tobytes())
        channels = array.shape[0] if planes else array.shape[2] if array.ndim == 3 else 1
        height, width = array.shape[-2:] if planes else array.shape[:2]
        about = {"type": str(array.dtype), "file": f"in{i}", "flat": flat}
        return about | {"width": width, "height": height, "channels": channels}


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def floats(output):
    return torch.from_numpy(np.frombuffer(output, np.float32).copy())


def bytes_of(output, like):
    return np.frombuffer(output, np.uint8).reshape(like.shape).astype(int)


@pytest.mark.parametrize("size", [(301, 207), (64, 180)])
@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("reduce", (3,), lambda image: image.reduce(3)),
        ("resize", (100, 333), lambda image: image.resize((100, 333), Image.Resampling.BILINEAR)),
        ("resize", (400, 330), lambda image: image.resize((400, 330), Image.Resampling.BILINEAR)),
        *(
            ("rotate", (degrees, 127), lambda image, degrees=degrees: image.rotate(
                degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=(127, 127, 127)
            ))
            for degrees in (20, -20, 90, 180, 270)
        ),
    ],
)  # fmt: skip
def test_pictures_as_pillow(node, size, call, arguments, expected):
    picture = noise(*size)
    wanted = np.asarray(expected(Image.fromarray(picture)))
    (output,) = node("image.js", call, picture, *arguments)
    difference = np.abs(bytes_of(output, wanted) - wanted)
    assert difference.max() <= 1  # a turned pixel is cut off, not rounded
    assert (difference > 0).mean() < 1e-4


@pytest.mark.parametrize("size", [(640, 480), (1500, 901)])
def test_photos_are_reduced_as_for_the_detector(node, size):
    from showface.faces.detector import _reduce

    picture = noise(*size)
    wanted = np.asarray(_reduce(Image.fromarray(picture), 200))
    (output,) = node("image.js", "reduceTo", picture, 200)
    assert np.abs(bytes_of(output, wanted) - wanted).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 5)])
def test_push_pull(node, size):
    image, hole = 255 * torch.rand(3, *size), (torch.rand(1, *size) < 0.7).float()
    (output,) = node("fill.js", "pushPullFill", image, hole, flat=(1,))
    expected = push_pull_fill(image[None], hole[None])[0]
    torch.testing.assert_close(floats(output).view(3, *size), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    "crop",
    [
        python_crops.Crop(10.0, -20.0, 150.0, 40.0),
        python_crops.Crop(-30.5, 12.0, 300.0, -80.0),
        python_crops.Crop(0, 0, 64.0, 0),
    ],
)
def test_crops(node, crop):
    photo, hole = noise(180, 120), np.random.default_rng(1).random((120, 180)) < 0.02
    photo = np.asarray(Image.fromarray(photo).resize((60, 40)).resize((180, 120)))
    image, corrupted = python_crops.read_crop(crop, photo, hole, photo, 64)
    outputs = node("crops.js", "readCrop", crop, hole, photo, 64, outputs=["image", "hole"])
    got = [floats(x) for x in outputs]
    torch.testing.assert_close(got[0].view(3, 64, 64), image, atol=1e-3, rtol=0)
    assert torch.equal(got[1].view(1, 64, 64), corrupted)


@pytest.mark.parametrize("width", [3, 40])
def test_boxes_around_pieces(node, width):
    hole = Image.new("1", (700, 500))
    ImageDraw.Draw(hole).line([(10, 20), (300, 90), (650, 480), (60, 300)], fill=1, width=width)
    hole = np.asarray(hole)
    (output,) = node("crops.js", "splitBoxes", hole, 16, 90)
    expected = python_crops.split_boxes(*np.nonzero(hole), 16, 90)
    assert len(expected) > 1
    assert np.array_equal(np.frombuffer(output, np.int32).reshape(-1, 4), expected)
    (output,) = node("crops.js", "widePart", hole, 20)
    assert np.array_equal(bytes_of(output, hole), python_crops.wide_part(hole, 20))


def test_work_is_cancelled_while_the_networks_load(tmp_path):
    shutil.copy(STATIC / "engine-onnx.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(CANCEL)
    done = subprocess.run(["node", "run.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["AbortError", "AbortError", "loading the network"]


def test_enlargement(node):
    small = torch.nn.functional.interpolate(255 * torch.rand(1, 3, 8, 8), (32, 32), mode="bicubic")[0].clamp(0, 255)
    sharp = torch.nn.functional.interpolate(small[None], (96, 96), mode="bicubic")[0] + 20 * torch.randn(3, 96, 96)
    hole = torch.zeros(1, 96, 96)
    hole[:, 20:60, 30:70] = 1
    expected = enlarge_fill(small, sharp, hole)
    (output,) = node("enlargement.js", "enlargeFill", small, sharp, hole, flat=(2,))
    torch.testing.assert_close(floats(output).view_as(expected), expected, atol=0.05, rtol=0)
