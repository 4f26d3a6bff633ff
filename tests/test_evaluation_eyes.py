"""The likeness of the two eyes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from showface import evaluation as ev
from showface.data import COMPONENTS, component_hole

SIZE = 128


def symmetric(seed: int = 0) -> np.ndarray:
    """A picture (SIZE, SIZE, 3) that is its own mirror image."""
    half = np.random.default_rng(seed).integers(40, 200, (SIZE // 8, SIZE // 16, 3), dtype=np.uint8)
    left = np.asarray(Image.fromarray(half).resize((SIZE // 2, SIZE), Image.Resampling.BICUBIC))
    return np.concatenate([left, left[:, ::-1]], axis=1)


def test_likeness() -> None:
    face = symmetric()
    assert ev.eye_likeness(face) > 0.99
    darker = face.copy()
    darker[:, SIZE // 2 :] = face[:, SIZE // 2 :] // 2 + 10
    assert ev.eye_likeness(darker) > 0.99  # light from the side
    moved = face.copy()
    moved[:, SIZE // 2 :] = np.roll(face[:, SIZE // 2 :], (2, -2), (0, 1))
    assert ev.eye_likeness(moved) > 0.99
    other = face.copy()
    other[:, SIZE // 2 :] = symmetric(1)[:, SIZE // 2 :]
    assert ev.eye_likeness(other) < 0.8
    flat = face.copy()
    flat[:, SIZE // 2 :] = 90
    assert ev.eye_likeness(flat) == 0


@pytest.mark.parametrize(
    "image", [np.zeros((64, 65, 3), np.uint8), np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8)]
)
def test_errors(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an aligned face must be uint8 of shape \(H, H, 3\), got"):
        ev.eye_likeness(image)


def test_which_components_hide_an_eye() -> None:
    hidden = {name for name in COMPONENTS if ev.hides_an_eye(component_hole(name, SIZE))}
    assert hidden == {"left eye", "right eye", "eyes", "left half", "right half"}


def test_the_table_has_it_where_an_eye_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    Image.fromarray(symmetric()).save(tmp_path / "faces" / "0.png")
    systems = {
        "blank": lambda image, hole: np.where(hole[..., None], np.uint8(128), image),
        "mirrored": lambda image, hole: np.where(hole[..., None], image[:, ::-1], image),
    }
    found = ev.run_evaluation(systems, [tmp_path / "faces"], tmp_path / "out", holes="components", size=SIZE)
    eyes = {(row.system, row.bin): row.eyes_percent for row in found.rows}
    assert {eyes["blank", hole] for hole in ("nose", "mouth", "lower half")} == {None}
    blank, mirrored = (eyes[system, "left eye"] for system in systems)
    assert blank is not None
    assert blank < 90
    assert mirrored == pytest.approx(100, abs=0.1)
    assert "| eyes % |" in (tmp_path / "out" / "table.md").read_text()


def test_free_form_holes_have_no_such_column(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    Image.fromarray(symmetric()).save(tmp_path / "faces" / "0.png")
    found = ev.run_evaluation({"blank": lambda image, hole: image}, [tmp_path / "faces"], tmp_path / "out", size=SIZE)
    assert {row.eyes_percent for row in found.rows} == {None}
    assert "eyes %" not in (tmp_path / "out" / "table.md").read_text()
