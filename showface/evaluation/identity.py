"""How far the face in a result is from the person in the photo, by a network for face recognition."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from showface.data import ALIGNED_POINTS

Embedding: TypeAlias = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]

CHIP = 150
"""Side in pixels of the network's input."""

# Where dlib puts the centres of the eyes in this input, with its padding of 0.25 on all sides: it aligns the eyes'
# corners with a mean face in the unit square, whose corners are at x 0.1206, 0.3341, 0.6461 and 0.8596, and y 0.2213 in
# the mean. A chip is 1.5 such squares wide.
_LEFT_EYE_X, _RIGHT_EYE_X, _EYES_Y = ((0.25 + place) / 1.5 for place in (0.2273, 0.7528, 0.2213))


class IdentityDistance:
    """Euclidean distance between the 128-dimensional face descriptors of a result and its target; lower is better.

        identity = IdentityDistance()
        distance = identity(result, target)         # (H, W, 3) uint8 each, of the same square size

    The network is dlib's ResNet (King, 2017), whose weights are in the public domain. Its authors call two faces the
    same person below a distance of 0.6. It needs no detector and no landmarks here: the faces are aligned, so the same
    box is cut out of all of them, in which the eyes of `ALIGNED_POINTS` lie where dlib puts them.

    Args:
        embed: another network, from a face (150, 150, 3) uint8 to its descriptor. By default dlib's.

    Raises:
        ModuleNotFoundError: dlib or the package with the weights is not installed.
    """

    def __init__(self, embed: Embedding | None = None) -> None:
        self._embed = embed if embed is not None else _dlib_network()
        self._targets: dict[bytes, npt.NDArray[np.float64]] = {}

    def __call__(self, result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> float:
        """The distance between the aligned faces in two images (H, H, 3) uint8."""
        # All systems and bins share their targets, and a descriptor takes 50 ms.
        key = hashlib.sha256(f"{target.shape}".encode() + target.tobytes()).digest()
        if key not in self._targets:
            self._targets[key] = self._embed(face_chip(target))
        return float(np.linalg.norm(self._embed(face_chip(result)) - self._targets[key]))


def face_chip(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cut the face out of an aligned image (H, H, 3) uint8, as dlib's network wants it: (150, 150, 3) uint8.

    Raises:
        ValueError: the image is not square.
    """
    height, width = image.shape[:2]
    if height != width:
        raise ValueError(f"an aligned face must be square, got {width}x{height}")
    (left, left_y), (right, right_y) = ALIGNED_POINTS[:2]
    side = (right - left) / (_RIGHT_EYE_X - _LEFT_EYE_X)
    x, y = left - _LEFT_EYE_X * side, (left_y + right_y) / 2 - _EYES_Y * side
    box = tuple(place * height for place in (x, y, x + side, y + side))
    chip = Image.fromarray(image).resize((CHIP, CHIP), Image.Resampling.BICUBIC, box=box)
    return np.array(chip, dtype=np.uint8)


def _dlib_network() -> Embedding:
    for module, package in (("dlib", "dlib-bin"), ("face_recognition_models", "face-recognition-models")):
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"the identity distance needs {package}: install 'showface[identity]'")
    # The package is not imported: it needs pkg_resources, which new versions of setuptools lack.
    spec = find_spec("face_recognition_models")
    assert spec is not None
    assert spec.origin is not None
    weights = Path(spec.origin).parent / "models" / "dlib_face_recognition_resnet_model_v1.dat"
    import dlib

    network = dlib.face_recognition_model_v1(str(weights))
    return lambda chip: np.array(network.compute_face_descriptor(chip))
