"""Restore photos from drawn scratches, dust and strokes, and score the fill: PSNR in the hole.

    python experiments/scratched_photos.py PHOTO... [--out pictures]

Compared are Telea's and the Navier-Stokes method, and showface in two ways: *whole pieces* fills each piece of the hole
in one crop around it, however large, and each face in its own crop; *showface* is `showface.inpaint`, which fills thin
pieces in small crops. Needs OpenCV (`pip install "showface[evaluate]"`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import showface
from showface import hole_filling
from showface.crops import split_boxes
from showface.data import read_image
from showface.evaluation import CLASSICAL, classical_system, markdown_table, psnr

Pixels = NDArray[np.uint8]
Hole = NDArray[np.bool_]
# Number of lines, their width in pixels, and number of specks with a radius of 1 to 7 pixels.
DAMAGES = {"dust": (0, 0, 200), "scratches": (8, 4, 0), "both": (8, 4, 200), "strokes": (2, 30, 0)}


def damage(size: tuple[int, int], lines: int, width: int, specks: int, seed: int) -> Hole:
    """A hole (H, W) of winding lines and of specks, for a photo of `size` (width, height)."""
    random, hole = np.random.default_rng(seed), Image.new("1", size)
    draw, side = ImageDraw.Draw(hole), max(size)
    for _ in range(lines):
        angle, steps = random.uniform(0, 2 * np.pi), 30
        points = [random.uniform(0.2, 0.8, 2) * size]
        for _ in range(steps):
            angle += random.normal(0, 0.1)
            points.append(points[-1] + 0.6 * side / steps * np.array([np.cos(angle), np.sin(angle)]))
        draw.line([tuple(point) for point in points], 1, width, joint="curve")
    for _ in range(specks):
        x, y = random.uniform(0, 1, 2) * size
        across, down = random.uniform(1, 7, 2)
        draw.ellipse((x - across, y - down, x + across, y + down), 1)
    return np.asarray(hole)


def whole_pieces(inpainter: showface.Inpainter, photo: Pixels, hole: Hole) -> Pixels:
    """Without the small crops for what is thin."""
    endless = max(hole.shape)
    whole = mock.patch.object(
        hole_filling, "split_boxes", lambda rows, columns, gap, thin_side: split_boxes(rows, columns, gap, endless)
    )
    with whole, mock.patch.object(hole_filling, "LARGE_FACE", endless):
        return np.asarray(inpainter(photo, hole))


def run(photos: list[Path], out: Path | None) -> str:
    """A markdown table: PSNR of each method in the hole of each photo, and showface's seconds."""
    inpainter = showface.Inpainter()
    methods: dict[str, Callable[[Pixels, Hole], Pixels]] = {name: classical_system(name) for name in CLASSICAL}
    methods["whole pieces"] = lambda photo, hole: whole_pieces(inpainter, photo, hole)
    methods["showface"] = lambda photo, hole: np.asarray(inpainter(photo, hole))
    lines = []
    for seed, path in enumerate(photos):
        truth = np.asarray(read_image(path))
        for name, (count, width, specks) in DAMAGES.items():
            hole = damage((truth.shape[1], truth.shape[0]), count, width, specks, seed)
            photo = truth.copy()
            photo[hole] = 255
            line = [path.name, f"{truth.shape[1]}x{truth.shape[0]}", name, f"{hole.mean():.1%}"]
            for method, fill in methods.items():
                start = time.perf_counter()
                result = np.where(hole[..., None], fill(photo, hole), truth)
                seconds = time.perf_counter() - start
                line.append(f"{psnr(result[hole][None], truth[hole][None]):.2f}")
                if out:
                    out.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(result).save(out / f"{path.stem}-{name}-{method.replace(' ', '-')}.png")
            lines.append([*line, f"{seconds:.1f}"])
    return markdown_table(["photo", "pixels", "damage", "hole", *methods, "s"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("--out", type=Path, help="folder for the restored photos")
    arguments = parser.parse_args()
    print(run(arguments.photos, arguments.out), end="")


if __name__ == "__main__":
    main()
