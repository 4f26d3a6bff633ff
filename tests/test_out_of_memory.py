"""A photo that needs more memory than there is: one clear line, and other photos are filled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from showface import inference
from showface.batch import fill_folder
from showface.data import read_photo
from showface.out_of_memory import TooLittleMemoryError, memory_errors

from support.commands import Filled
from support.pictures import save_faces

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
ERRORS = {
    "cpu": RuntimeError(CPU),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "numpy": MemoryError("Unable to allocate 9.00 GiB for an array"),
}


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("kind", ERRORS)
def test_every_kind_becomes_one_error(kind: str) -> None:
    expected = pytest.raises(TooLittleMemoryError, match=r"^the tar file needs more memory than there is$")
    with expected, memory_errors("this"), memory_errors("the tar file"):
        raise ERRORS[kind]


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), memory_errors():
        raise RuntimeError("The size of tensor a must match")


@pytest.mark.parametrize("kind", ERRORS)
def test_the_command_says_it_in_one_line(
    showface: Callable[..., tuple[int, str, str]],
    faces: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(inference.Inpainter, "restore", failing(ERRORS[kind]))
    mask = faces / "1.png"
    result = showface("inpaint", faces / "0.png", mask, "-o", "r.png", "--model", folder, "--no-faces")
    assert result == (1, "", "error: the photo needs more memory than there is\n")


def test_any_command_says_it_in_one_line(
    showface: Callable[..., tuple[int, str, str]], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showface.registry.load_model", failing(ERRORS["cpu"]))
    assert showface("memory", faces) == (1, "", "error: this needs more memory than there is\n")


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_folder_goes_on(tmp_path: Path, kind: str, batch: int) -> None:
    photos = save_faces(tmp_path / "photos")
    large = read_photo(photos / "1.png").rgb.tobytes()

    def fill(work):
        if any(photo.tobytes() == large for photo, _ in work):
            raise ERRORS[kind]
        return [Filled(photo) for photo, _ in work]

    def find_hole(path, photo):
        hole = torch.zeros(photo.rgb.height, photo.rgb.width, dtype=torch.bool).numpy()
        hole[:9, :9] = True
        return hole

    result = fill_folder(photos, tmp_path / "out", find_hole, fill, batch=batch)
    assert result.filled == [Path("0.png"), Path("2.png")]
    assert result.failed == {Path("1.png"): "the photo needs more memory than there is"}
