"""What the tests of `showface inpaint` look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image


class Filled(NamedTuple):
    image: Image.Image
    faces: int = 1


def files(folder: Path | str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def assert_fails(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err
    assert not files(Path.cwd())
