"""Holes from paint, from transparency and from masks, and what is said about them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from showface.data import Marks, alpha_hole, describe_hole, grow_hole, painted_hole, read_photo
from showface.data.hole import piece_areas

from support.pictures import noise


def smooth(width: int = 200, height: int = 160) -> Image.Image:
    """A picture without white, black or strong red, like skin."""
    values = np.random.default_rng(0).integers(60, 200, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)


def scribble(photo: Image.Image, colour: str, soft: bool = True) -> tuple[Image.Image, NDArray[np.bool_]]:
    """A photo with a stroke of paint, and all pixels that the paint changed."""
    mask = Image.new("L", (photo.width * 4, photo.height * 4))
    ImageDraw.Draw(mask).line([(100, 100), (600, 200), (300, 500)], fill=255, width=50)
    mask = mask.resize(photo.size, Image.Resampling.BOX if soft else Image.Resampling.NEAREST)
    painted = photo.copy()
    painted.paste(Image.new("RGB", photo.size, colour), mask=mask)
    return painted, np.asarray(mask) > 0


def scattered(seed: int, share: float, height: int = 37, width: int = 53) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((height, width)) < share


# Paint


@pytest.mark.parametrize("colour", ["white", "#ff0000", "black", "lime", "rgb(10, 20, 250)"])
@pytest.mark.parametrize("soft", [True, False])
def test_paint_is_found_with_its_soft_edge(colour: str, soft: bool) -> None:
    painted, changed = scribble(smooth(), colour, soft)
    hole = painted_hole(painted, colour)
    assert hole.dtype == np.bool_
    assert not (changed & ~hole).any()
    assert not (hole & ~grow_hole(changed, 3)).any()


@pytest.mark.parametrize("colour", ["white", "#ff0000"])
def test_paint_in_a_jpeg(colour: str) -> None:
    painted, changed = scribble(smooth(), colour)
    file = io.BytesIO()
    painted.save(file, "JPEG", quality=90)
    hole = painted_hole(Image.open(file), colour)
    assert (changed & ~hole).sum() < 0.02 * changed.sum()
    assert not (hole & ~grow_hole(changed, 3)).any()


def test_specks_are_left_out_by_their_area() -> None:
    photo = smooth()
    ImageDraw.Draw(photo).rectangle((20, 20, 22, 24), fill="white")  # 15 pixels, as a highlight in an eye
    assert not painted_hole(photo, "white").any()
    found = painted_hole(photo, "white", min_area=15)
    assert found[20:25, 20:23].all()
    assert found.sum() < 100


@pytest.mark.parametrize("mode", ["RGBA", "RGBa"])
def test_what_is_transparent_is_not_painted(mode: str) -> None:
    """It reads as white."""
    image = Image.new("RGBA", (60, 60), (90, 60, 30, 255))
    ImageDraw.Draw(image).rectangle((5, 5, 20, 20), fill="white")
    whole = Marks(paint="white").hole(read_photo(image))
    ImageDraw.Draw(image).rectangle((30, 30, 50, 50), fill=(0, 0, 0, 0))
    hole = Marks(paint="white").hole(read_photo(image.convert(mode)))
    assert np.array_equal(hole, whole)
    assert whole.sum() == 18**2


def test_tolerance() -> None:
    photo = smooth()
    ImageDraw.Draw(photo).rectangle((50, 50, 99, 99), fill=(250, 240, 235))
    assert not painted_hole(photo, "white").any()
    assert painted_hole(photo, "white", tolerance=20)[50:100, 50:100].all()


def test_painted_hole_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="blurple"):
        painted_hole(smooth(), "blurple")
    for colour in ("rgb(300,0,0)", "rgb(120%,0%,0%)", "hsl(0,200%,50%)"):
        with pytest.raises(ValueError, match="unknown color"):
            painted_hole(smooth(), colour)
    with pytest.raises(ValueError, match="tolerance"):
        painted_hole(smooth(), "white", tolerance=256)
    with pytest.raises(ValueError, match="min_area"):
        painted_hole(smooth(), "white", min_area=-1)


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_transparency_is_a_hole(mode: str) -> None:
    alpha = np.full((40, 32), 255, dtype=np.uint8)
    alpha[5:9, 5:9], alpha[20, :], alpha[30, :] = 0, 128, 252
    photo = noise().convert("RGBA" if mode.startswith("RGB") else "LA")
    photo.putalpha(Image.fromarray(alpha))
    hole = alpha_hole(photo.convert(mode))
    assert np.array_equal(hole, alpha < 250)


def test_a_transparent_colour_of_a_palette() -> None:
    photo = Image.fromarray(scattered(0, 0.3).astype(np.uint8)).convert("P")
    photo.info["transparency"] = 1
    assert np.array_equal(alpha_hole(photo), scattered(0, 0.3))


def test_no_transparency_is_an_error() -> None:
    with pytest.raises(ValueError, match="no transparency"):
        alpha_hole(noise())


# Growing


@pytest.mark.parametrize("pixels", [0, 1, 2, 5, 100])
def test_growing_is_by_euclidean_distance(pixels: int) -> None:
    hole = scattered(1, 0.003)
    rows, columns = np.nonzero(hole)
    y, x = np.mgrid[: hole.shape[0], : hole.shape[1]]
    distance = ((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2).min(axis=-1)
    assert np.array_equal(grow_hole(hole, pixels), distance <= pixels**2)
    assert not grow_hole(np.zeros_like(hole), pixels).any()


def test_a_hole_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="-1"):
        grow_hole(scattered(0, 0.5), -1)


# Pieces


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_those_of_another_library(share: float, seed: int) -> None:
    measure = pytest.importorskip("skimage.measure")
    hole = scattered(seed, share)
    labels = measure.label(hole, connectivity=2)
    assert sorted(piece_areas(hole)) == sorted(np.bincount(labels.ravel())[1:])


def test_a_spiral_is_one_piece() -> None:
    """Its arms are joined row by row only far from where they start."""
    hole = np.zeros((101, 101), dtype=bool)
    top, left, bottom, right = 0, 0, 100, 100
    while top < bottom and left < right:
        hole[top, left : right + 1] = hole[top : bottom + 1, right] = hole[bottom, left : right + 1] = True
        hole[top + 2 : bottom + 1, left] = True
        if left + 1 < right:
            hole[top + 2, left : left + 3] = True
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    assert len(piece_areas(hole)) == 1


# Reports


def box(height: int = 40, width: int = 32) -> NDArray[np.bool_]:
    hole = np.zeros((height, width), dtype=bool)
    hole[5:15, 5:15] = hole[20:25, 20:30] = True
    return hole


def as_mask(hole: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(hole.astype(np.uint8) * 255)


def test_a_good_hole_has_no_problems() -> None:
    report = describe_hole(noise(), box(), as_mask(box()))
    assert (report.ratio, report.pieces, report.problems) == (150 / 1280, 2, ())


@pytest.mark.parametrize(
    ("hole", "problem"),
    [
        (np.zeros((40, 32), dtype=bool), "the hole is empty"),
        (np.ones((40, 32), dtype=bool), "the hole is the whole photo"),
        (~box(), "the mask looks inverted"),
    ],
)
def test_suspicious_holes(hole: NDArray[np.bool_], problem: str) -> None:
    (found,) = describe_hole(noise(), hole).problems
    assert problem in found


def test_suspicious_masks() -> None:
    (found,) = describe_hole(noise(), box(), as_mask(box(80, 64))).problems
    assert found == "the mask is 64x80, the photo 32x40"
    (found,) = describe_hole(noise(), box(), as_mask(box(40, 64))).problems
    assert "stretched" in found
    grey = Image.fromarray(np.where(box(), 160, 0).astype(np.uint8))
    (found,) = describe_hole(noise(), box(), grey).problems
    assert "12% of the mask is grey" in found
