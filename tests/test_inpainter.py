"""`showface.Inpainter` on photos of faces, with the bundled detector and a tiny random network."""

from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

import showface
from showface.crops import Crop


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    return Image.open(str(files("showface") / "assets" / "demo" / "portrait.png")).convert("RGB")


def hole_at(photo: Image.Image, *centres: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: photo.height, : photo.width]
    return np.any([(columns - x) ** 2 + (rows - y) ** 2 < radius**2 for x, y in centres], axis=0)


def on_grey(face: Image.Image, at: tuple[int, int], size: tuple[int, int] = (600, 500)) -> Image.Image:
    photo = Image.new("RGB", size, (120, 120, 120))
    photo.paste(face, at)
    return photo


@pytest.fixture
def inpainter(model) -> showface.Inpainter:
    return showface.Inpainter(model)


def check(
    inpainter: showface.Inpainter, photo: Image.Image, hole: np.ndarray, faces: int
) -> showface.inference.Restoration:
    result = inpainter.restore(photo, hole)
    assert result.faces == faces
    assert np.array_equal(np.asarray(result.image)[~hole], np.asarray(photo)[~hole])
    return result


def test_in_bfloat16(inpainter, portrait):
    """Its products are rounded to bfloat16, its fill is nearly the same, and the detector finds what it found."""
    photo = on_grey(portrait, (200, 120))
    hole = hole_at(photo, (280, 245), radius=14)
    here = check(inpainter, photo, hole, 1)
    half = check(showface.Inpainter(inpainter.model, precision="bf16"), photo, hole, 1)
    fills = [np.asarray(result.image)[hole].astype(float) for result in (here, half)]
    difference = np.abs(fills[0] - fills[1])
    assert 0 < difference.max() < 8
    assert difference.mean() < 1
    assert half.image.tobytes() == showface.inpaint(photo, hole, model=inpainter.model, precision="bf16").tobytes()
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'bf16', got 'int8'"):
        showface.Inpainter(inpainter.model, precision="int8")


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_faces_in_every_direction(inpainter, portrait, turn):
    photo = on_grey(portrait.rotate(turn), (200, 120))
    x, y = {0: (280, 245), 90: (325, 290), 180: (376, 251), 270: (331, 206)}[turn]
    check(inpainter, photo, hole_at(photo, (x, y), radius=14), 1)


@pytest.mark.parametrize("side", [70, 130, 480])
def test_faces_of_every_size(inpainter, portrait, side):
    photo = on_grey(portrait.resize((side, side)), (20, 10))
    check(inpainter, photo, hole_at(photo, (20 + 0.4 * side, 10 + 0.48 * side), radius=0.06 * side), 1)


def test_a_face_that_the_border_cuts(inpainter, portrait):
    photo = portrait.crop((60, 0, 256, 200))
    check(inpainter, photo, hole_at(photo, (90, 120), radius=12), 1)


def test_only_faces_that_the_hole_touches(inpainter, portrait):
    photo = on_grey(portrait, (0, 0))
    photo.paste(portrait, (330, 100))
    check(inpainter, photo, hole_at(photo, (330 + 110, 100 + 125), radius=10), 1)
    check(inpainter, photo, hole_at(photo, (110, 125), (330 + 110, 100 + 125), radius=10), 2)


def test_forty_faces(inpainter, portrait):
    face, photo = portrait.resize((120, 120)), Image.new("RGB", (960, 600), (120, 120, 120))
    places = [(120 * column, 120 * row) for row in range(5) for column in range(8)]
    for place in places:
        photo.paste(face, place)
    hole = hole_at(photo, *((x + 48, y + 58) for x, y in places), radius=5)
    assert inpainter.restore(photo, hole).faces >= 38


def test_no_face(inpainter):
    photo = on_grey(Image.linear_gradient("L").convert("RGB"), (100, 100))
    with pytest.warns(UserWarning, match="no face was found at the hole"):
        check(inpainter, photo, hole_at(photo, (200, 200), radius=20), 0)


def test_an_aligned_face_is_filled_as_it_is(inpainter, portrait):
    result = check(inpainter, portrait, hole_at(portrait, (110, 125), radius=15), 1)
    assert result.crops == (Crop(0.0, 0.0, 256.0, 0.0),)


def test_several_photos_at_once(inpainter, portrait):
    hole = hole_at(portrait, (110, 125), radius=15)
    with pytest.warns(UserWarning, match="the mask is empty"):
        first, empty, last = inpainter.restore_many(
            [(portrait, hole), (portrait, np.zeros_like(hole)), (portrait.rotate(180), hole[::-1, ::-1].copy())]
        )
    assert (first.faces, empty.faces, last.faces) == (1, 0, 1)
    assert empty.image.tobytes() == portrait.tobytes()
    alone = np.asarray(inpainter(portrait, hole)).astype(int)
    assert np.abs(alone - np.asarray(first.image)).max() <= 1


def test_size_is_checked(model):
    with pytest.raises(ValueError, match="size must be at least 16 pixels, got 8"):
        showface.Inpainter(model, size=8)
