"""Whole photos, from PIL image to PIL image, with OpenCV beside: `pytest benchmarks/test_photos.py`.

The photos are made of copies of the bundled portrait, enlarged and turned, each with a round hole.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.resources import files

import numpy as np
import pytest
from interleaved import Checked, Run, check_all
from measure import DEVICE
from numpy.typing import NDArray
from PIL import Image
from to_pytest import CLOCK, report

import showface
from showface.evaluation import CLASSICAL, classical_system

IMPLEMENTATIONS = ("showface", "showface, without faces", *CLASSICAL)


@dataclass(frozen=True)
class Problem:
    megapixels: int
    faces: int
    side: int  # of each portrait, in pixels


def problems() -> Iterator[Problem]:
    yield Problem(1, 1, 500)
    yield from (Problem(12, faces, side) for faces, side in ((1, 1000), (1, 2400), (6, 1000)))
    yield Problem(48, 1, 1000)


def make(problem: Problem) -> tuple[Image.Image, NDArray[np.bool_]]:
    """A photo of 4:3 with the portraits in rows of three, and a hole over an eye of each."""
    height = round((problem.megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    portrait = Image.open(str(files("showface") / "assets" / "demo" / "portrait.png")).convert("RGB")
    portrait = portrait.resize((problem.side, problem.side), Image.Resampling.BICUBIC)
    photo = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    hole = np.zeros((height, width), bool)
    rows, columns = np.ogrid[:height, :width]
    for i in range(problem.faces):
        turned = portrait.rotate(10 * (i % 3) - 10, Image.Resampling.BICUBIC)
        left, top = width // 40 + i % 3 * (width // 3), height // 40 + i // 3 * (height // 2)
        photo.paste(turned, (left, top))
        x, y, radius = left + 0.6 * problem.side, top + 0.5 * problem.side, 0.12 * problem.side
        hole |= (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    return photo, hole


@cache
def inpainter(faces: bool) -> showface.Inpainter:
    return showface.Inpainter(showface.load_model(device=DEVICE), faces=faces)


def fill(name: str, photo: Image.Image, hole: NDArray[np.bool_]) -> NDArray[np.uint8]:
    if name in CLASSICAL:
        return classical_system(name)(np.asarray(photo), hole)
    return np.asarray(inpainter(name == "showface")(photo, hole))


def prepare(problem: Problem) -> Checked:
    """The implementations, after their results were checked: known pixels are kept, and the hole is filled."""
    photo, hole = make(problem)
    assert inpainter(True).restore(photo, hole).faces == problem.faces
    known = np.asarray(photo)[~hole]
    runs: dict[str, Run] = {name: partial(fill, name, photo, hole) for name in IMPLEMENTATIONS}

    def check(result: NDArray[np.uint8]) -> None:
        assert np.array_equal(result[~hole], known)

    return check_all(runs, check)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.filterwarnings("ignore:no face was found")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: "-".join(map(str, asdict(problem).values())))
def test_photos(benchmark, problem: Problem, name: str) -> None:
    if name in CLASSICAL:
        pytest.importorskip("cv2")
    case = {"op": "photos", "mode": "photo to photo", "dtype": "float32", **asdict(problem)}
    report(benchmark, case, name, partial(prepare, problem), work=None, rounds=3)
