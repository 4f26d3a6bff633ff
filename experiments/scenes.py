"""Scenes like people's photos, made of aligned faces, in memory: each face is turned, scaled and set into a picture.

Where each face lies is known exactly, as a similarity. Coordinates are those of Pillow: (0, 0) is the upper left corner
of the first pixel, so its centre is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from showface.data import ALIGNED_POINTS
from showface.evaluation import read_target

SIDE = 256
"""Side of the aligned faces in pixels."""
GROUP = 6
"""Number of faces in a group."""
MARGIN = 24
"""Width in pixels of the border that is added around an aligned face, in which it fades into the background."""

Matrix = NDArray[np.float64]
Hole = NDArray[np.bool_]


@dataclass(frozen=True)
class Placement:
    """An aligned face and the similarity `matrix` (2, 3) that takes its coordinates to those of the photo."""

    face: Image.Image
    matrix: Matrix

    @property
    def points(self) -> NDArray[np.float64]:
        """Where `ALIGNED_POINTS` lie in the photo, (5, 2)."""
        return transform_points(self.matrix, np.asarray(ALIGNED_POINTS) * SIDE)


@dataclass(frozen=True)
class Scene:
    """A photo and the faces in it."""

    photo: Image.Image
    placements: tuple[Placement, ...]

    def hole(self, holes: Sequence[Hole]) -> Hole:
        """The hole of the photo, (H, W), from the hole of each aligned face, (SIDE, SIDE) each."""
        whole = np.zeros((self.photo.height, self.photo.width), dtype=np.bool_)
        for placement, hole in zip(self.placements, holes, strict=True):
            mask = Image.fromarray(hole.astype(np.uint8) * 255)
            whole |= np.asarray(warp(mask, placement.matrix, self.photo.size, Image.Resampling.NEAREST)) > 0
        return whole


@dataclass(frozen=True)
class Album:
    """Makes scenes from files of aligned faces. Scene i depends only on the files, the seed and i."""

    files: Sequence[Path]
    seed: int = 0

    def portrait(self, index: int) -> Scene:
        """One face, turned by up to 30 degrees and scaled 0.7 to 2, somewhere in a picture of 800 to 1400 pixels."""
        rng = np.random.default_rng([self.seed, 0, index])
        scale, degrees = rng.uniform(0.7, 2.0), rng.uniform(-30, 30)
        width, height = (int(rng.integers(800, 1401)) for _ in range(2))
        # Half the side of the box around the turned face, so that all of the face lies in the photo.
        turn = math.radians(abs(degrees))
        reach = scale * SIDE / 2 * (math.cos(turn) + math.sin(turn))
        centre = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        return self._compose((width, height), [(self.files[index], similarity(scale, degrees, centre))], rng)

    def group(self, index: int) -> Scene:
        """The faces `GROUP * index` and following, turned by up to 30 degrees and scaled 0.5 to 1, in rows of three."""
        rng = np.random.default_rng([self.seed, 1, index])
        cell = 1.3 * SIDE
        placed = []
        for number, file in enumerate(self.files[GROUP * index : GROUP * (index + 1)]):
            row, column = divmod(number, 3)
            scale = rng.uniform(0.5, 1.0)
            shift = (cell - 1.2 * scale * SIDE) / 2 * rng.uniform(-1, 1, 2)
            centre = cell * (column + 0.5) + shift[0], cell * (row + 0.5) + shift[1]
            placed.append((file, similarity(scale, rng.uniform(-30, 30), centre)))
        return self._compose((round(3 * cell), round(2 * cell)), placed, rng)

    def _compose(self, size: tuple[int, int], placed: Sequence[tuple[Path, Matrix]], rng: np.random.Generator) -> Scene:
        photo = self._background(size, rng)
        placements = []
        for file, matrix in placed:
            face = read_target(file, SIDE)
            # The face fades in a border of its own mirrored pixels, so that every pixel of it is unchanged.
            border = np.pad(face, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="symmetric")
            outer = matrix @ _square(translation(-MARGIN, -MARGIN))
            picture = warp(Image.fromarray(border), outer, size)
            photo.paste(picture, mask=warp(_fading(), outer, size, Image.Resampling.BILINEAR))
            placements.append(Placement(Image.fromarray(face), matrix))
        return Scene(photo, tuple(placements))

    def _background(self, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
        """Smooth colours of two grains, or another photo of the album, blurred, for half of the scenes each."""
        if rng.random() < 0.5:
            layers = []
            for cells, strength in ((5, 1.0), (24, 0.25)):
                colours = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
                layer = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
                layers.append(strength * (np.asarray(layer, dtype=np.float32) - 127.5))
            return Image.fromarray(np.clip(127.5 + 0.6 * sum(layers), 0, 255).astype(np.uint8))
        side = max(size)
        other = Image.fromarray(read_target(self.files[rng.integers(len(self.files))], SIDE))
        # Upside down and out of focus, so that it holds no other face to find.
        other = other.transpose(Image.Transpose.FLIP_TOP_BOTTOM).filter(ImageFilter.GaussianBlur(SIDE / 32))
        return other.resize((side, side), Image.Resampling.BICUBIC).crop((0, 0, *size))


def _fading() -> Image.Image:
    """Opacity of a face with its border: full in the face, and down to none at the outside."""
    side = SIDE + 2 * MARGIN
    inward = np.minimum(np.arange(side), np.arange(side)[::-1]) / MARGIN
    return Image.fromarray((np.minimum(np.minimum.outer(inward, inward), 1) * 255).astype(np.uint8))


def similarity(scale: float, degrees: float, centre: tuple[float, float]) -> Matrix:
    """The matrix (2, 3) that scales and turns an aligned face, and puts the face's centre at `centre`."""
    turn = math.radians(degrees)
    linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.column_stack([linear, np.asarray(centre) - linear @ np.full(2, SIDE / 2)])


def translation(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def invert(matrix: Matrix) -> Matrix:
    return np.linalg.inv(_square(matrix))[:2]


def transform_points(matrix: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a matrix (2, 3) to points (N, 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp(
    image: Image.Image,
    matrix: Matrix,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Draw an image through a similarity `matrix`, from its coordinates to those of the result. It is 0 outside.

    A reduced image is drawn larger and then averaged, except with `NEAREST`.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    fine = 1 if resample == Image.Resampling.NEAREST else max(1, math.ceil(1 / scale))
    inverse = invert(fine * matrix)
    large = (size[0] * fine, size[1] * fine)
    drawn = image.transform(large, Image.Transform.AFFINE, tuple(inverse.ravel()), resample)
    return drawn.reduce(fine) if fine > 1 else drawn


def _square(matrix: Matrix) -> Matrix:
    return np.vstack([matrix, [0, 0, 1]])
