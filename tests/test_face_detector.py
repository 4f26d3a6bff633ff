"""The face detector agrees with OpenCV's FaceDetectorYN, and finds large, small and turned faces.

`yunet_expected.json` holds what OpenCV found; `tools/convert_yunet.py` wrote it. To compare with OpenCV itself, set
SHOWFACE_YUNET_ONNX to the path of `face_detection_yunet_2023mar.onnx`, which is not part of the package.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from convert_yunet import EXPECTED, opencv_faces, pictures
from PIL import Image

import showface
from showface.data import read_image
from showface.faces import FaceDetector, default_detector, find_faces
from showface.faces.detector import suppress
from showface.faces.yunet import WEIGHTS

from support.pictures import noise

PICTURES = pictures()
PORTRAIT = read_image(Path(showface.__file__).parent / "assets" / "demo" / "portrait.png")


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return default_detector()


def scene(width: int, height: int, side: int, left: int, top: int, turn: int = 0) -> Image.Image:
    """The portrait, `side` pixels wide and turned by `turn` quarter turns, in a large grey picture."""
    picture = Image.new("RGB", (width, height), (110, 120, 130))
    face = PORTRAIT.resize((side, side), Image.Resampling.BICUBIC).rotate(90 * turn)
    picture.paste(face, (left, top))
    return picture


def points_in_scene(side: int, left: int, top: int, turn: int = 0) -> np.ndarray:
    """Where the detector should find the portrait's points in `scene`."""
    x, y = (default_detector().detect(PORTRAIT)[0].points * side / PORTRAIT.width).T
    for _ in range(turn):
        x, y = y, side - x
    return np.stack([x + left, y + top], axis=1)


def assert_equal_to_opencv(detector: FaceDetector, picture: Image.Image, rows: np.ndarray) -> None:
    faces = detector.detect(picture)
    assert len(faces) == len(rows)
    for face, row in zip(faces, sorted(rows, key=lambda row: -row[-1]), strict=True):
        left, top, width, height = row[:4]
        np.testing.assert_allclose(face.box, (left, top, left + width, top + height), atol=0.05)
        np.testing.assert_allclose(face.points.ravel(), row[4:-1], atol=0.05)
        assert face.score == pytest.approx(row[-1], abs=0.002)


@pytest.mark.parametrize("name", PICTURES)
def test_agrees_with_what_opencv_found(detector, name):
    rows = np.array(json.loads(EXPECTED.read_text())[name])
    assert_equal_to_opencv(detector, PICTURES[name], rows)


@pytest.mark.skipif("SHOWFACE_YUNET_ONNX" not in os.environ, reason="SHOWFACE_YUNET_ONNX names no file")
@pytest.mark.parametrize("name", PICTURES)
def test_agrees_with_opencv(detector, name):
    pytest.importorskip("cv2")
    assert_equal_to_opencv(
        detector, PICTURES[name], opencv_faces(PICTURES[name], Path(os.environ["SHOWFACE_YUNET_ONNX"]))
    )


def test_the_weights_are_small_and_their_licence_is_beside_them():
    assert WEIGHTS.stat().st_size < 250_000
    assert "Shenzhen Institute" in (WEIGHTS.parent / "LICENSE-yunet.txt").read_text()


@pytest.mark.parametrize(("side", "left", "top"), [(1500, 400, 60), (140, 2000, 1400)])
def test_large_and_small_faces_of_a_large_photo(side, left, top):
    (face,) = find_faces(scene(2400, 1700, side, left, top))
    expected = points_in_scene(side, left, top)
    assert np.abs(face.points - expected).max() < 0.05 * side


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_turned_faces(turn):
    photo = scene(500, 420, 260, 40, 90, turn)
    (face,) = find_faces(photo)
    assert np.abs(face.points - points_in_scene(260, 40, 90, turn)).max() < 10
    left, top, right, bottom = face.box
    assert 40 <= left < right <= 300
    assert 90 <= top < bottom <= 350


def test_points_are_in_the_order_of_the_picture(detector):
    left_eye, right_eye, nose, left_mouth, right_mouth = detector.detect(PORTRAIT)[0].points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


def test_the_largest_face_comes_first():
    faces = find_faces(PICTURES["crowd"])
    assert len(faces) == 5
    assert [face.area for face in faces] == sorted((face.area for face in faces), reverse=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (7, 3), (33, 65)])
def test_pictures_without_faces(size):
    assert find_faces(Image.new("RGB", size, (90, 90, 90))) == []
    assert find_faces(noise(size[1], size[0])) == []


def test_a_greyscale_photo_is_read():
    assert len(find_faces(PORTRAIT.convert("L"))) == 1


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_refuses_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match="threshold"):
        find_faces(PORTRAIT, threshold=threshold)


def test_suppression_keeps_the_best_of_boxes_that_overlap():
    def row(left: float, right: float, score: float) -> list[float]:
        return [left, 0, right, 10, *[0] * 10, score]

    rows = suppress(np.array([row(0, 10, 0.7), row(1, 11, 0.9), row(9, 19, 0.8), row(30, 30, 0.65)]))
    assert rows[:, -1].tolist() == [0.9, 0.8, 0.65]
    assert suppress(np.zeros((0, 15))).shape == (0, 15)
