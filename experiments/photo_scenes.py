"""Filling holes in photos of faces that are not aligned: how much is lost, and how much finding the face brings back.

    python experiments/photo_scenes.py faces/celebahq faces/ffhq --masks masks --out scenes
    python experiments/photo_scenes.py faces/celebahq --faces       # recall of the face detector

Builds scenes from aligned faces (see `scenes.py`): portraits with one face, and groups of six. Every aligned face gets
one hole in each range of hole ratios, paired as in `showface evaluate`, and the holes are set into the photo with the
faces. Each method fills the photo. Scored is the PSNR inside the holes, as the mean over scenes.

Two rows are no methods, since they know where the faces are. "aligned crop" fills the original aligned face, which has
pixels that the photo lacks: no way through the photo should be better. "true crop" cuts the face out of the photo
with the true similarity: what a perfect face detector would give. The column "of the way" is 0% for Navier-Stokes and
100% for the aligned crop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import showface
from showface.data import find_images
from showface.evaluation import bin_label, classical_system, generate_masks, markdown_table, plan, psnr, read_hole
from showface.files import write_atomically, write_text

from scenes import GROUP, SIDE, Album, Hole, Placement, Scene, invert, warp

Method = Callable[[Image.Image, Hole], Image.Image]
Bin = tuple[float, float]

LOWER, UPPER = "navier-stokes", "aligned crop"
FOUND = 0.35
"""A face counts as found if the five points' mean error is below this fraction of the distance between the eyes.

The truth is the points' mean place in aligned faces, and faces differ: on 40 portraits without holes, YuNet's points
are 0.12 from it in the median and 0.31 at most, for heads that are turned to the side.
"""


def _classical(name: str) -> Method:
    def fill(photo: Image.Image, hole: Hole) -> Image.Image:
        return Image.fromarray(classical_system(name)(np.asarray(photo), hole))

    return fill


def without_faces(photo: Image.Image, hole: Hole) -> Image.Image:
    """Fill the pieces of the hole as in a picture without faces."""
    return showface.inpaint(photo, hole, faces=False)


METHODS: dict[str, Method] = {
    LOWER: _classical("navier-stokes"),
    "telea": _classical("telea"),
    "without faces": without_faces,
    "showface": showface.inpaint,
}
"""The methods that are compared: an RGB photo with a grey hole, and the hole -> a filled photo of the same size."""


def aligned_crop(scene: Scene, holes: Sequence[Hole], photo: Image.Image, hole: Hole) -> Image.Image:
    """Fill each original aligned face, and set it back."""
    crops = [(blank(placement.face, own), own) for placement, own in zip(scene.placements, holes, strict=True)]
    return _fill_crops(scene, crops, photo)


def true_crop(scene: Scene, holes: Sequence[Hole], photo: Image.Image, hole: Hole) -> Image.Image:
    """Cut each face out of the photo by its true place, fill it, and set it back."""
    cover = Image.fromarray(hole.astype(np.uint8) * 255)
    crops = []
    for placement in scene.placements:
        # A crop's pixel that has any part in the hole belongs to it, and is drawn bilinearly like the crop: so no
        # grey of the hole gets into known pixels.
        cut = [
            warp(image, invert(placement.matrix), (SIDE, SIDE), Image.Resampling.BILINEAR) for image in (photo, cover)
        ]
        crops.append((cut[0], np.asarray(cut[1]) > 0))
    return _fill_crops(scene, crops, photo)


ORACLES = {"true crop": true_crop, UPPER: aligned_crop}


def _fill_crops(scene: Scene, crops: Sequence[tuple[Image.Image, Hole]], photo: Image.Image) -> Image.Image:
    result = photo
    for placement, (crop, hole) in zip(scene.placements, crops, strict=True):
        filled = showface.inpaint(crop, hole, faces=False) if hole.any() else crop
        inside = warp(Image.new("L", crop.size, 255), placement.matrix, photo.size, Image.Resampling.NEAREST)
        # Beyond its border a crop is black: its last pixels are repeated, so that no black is mixed into them.
        padded = Image.fromarray(np.pad(np.asarray(filled), ((2, 2), (2, 2), (0, 0)), mode="edge"))
        outer = placement.matrix.copy()
        outer[:, 2] -= 2 * outer[:, :2].sum(axis=1)
        result = Image.composite(warp(padded, outer, photo.size), result, inside)
    return result


def blank(image: Image.Image, hole: Hole, level: int = 127) -> Image.Image:
    """The image with a grey hole, so that no method can see what it must restore."""
    return Image.fromarray(np.where(hole[..., None], np.uint8(level), np.asarray(image)))


@dataclass(frozen=True)
class Score:
    """The PSNR in the holes of one scene, in dB."""

    kind: str
    scene: int
    bin: str
    method: str
    psnr: float


@dataclass(frozen=True)
class Case:
    """A scene, and the hole of each of its aligned faces."""

    kind: str
    index: int
    bin: str
    scene: Scene
    holes: list[Hole]


def cases(files: Sequence[Path], masks: Sequence[Path], bins: Sequence[Bin], seed: int) -> Iterator[Case]:
    """In each bin, a portrait of each file, then groups of six of them."""
    pairs = plan(files, masks, SIDE, bins, seed)
    album = Album(files, seed)
    for number, bounds in enumerate(bins):
        of_file = pairs[number * len(files) : (number + 1) * len(files)]
        for kind, make, size in (("portrait", album.portrait, 1), ("group", album.group, GROUP)):
            for index in range(len(files) // size):
                own = of_file[size * index : size * (index + 1)]
                holes = [read_hole(pair.mask, SIDE) for pair in own]
                yield Case(kind, index, bin_label(bounds), make(index), holes)


def fill(case: Case, methods: dict[str, Method]) -> tuple[Hole, dict[str, Image.Image]]:
    """The photo's hole, and the photo filled by each method and oracle. Known pixels are taken from the photo."""
    hole = case.scene.hole(case.holes)
    photo = blank(case.scene.photo, hole)
    mask = Image.fromarray(hole)
    results = {name: method(photo, hole) for name, method in methods.items()}
    results |= {name: oracle(case.scene, case.holes, photo, hole) for name, oracle in ORACLES.items()}
    return hole, {name: Image.composite(result, case.scene.photo, mask) for name, result in results.items()}


def hole_psnr(result: Image.Image, truth: Image.Image, hole: Hole) -> float:
    return psnr(np.asarray(result)[hole][None], np.asarray(truth)[hole][None])


def installed(methods: dict[str, Method]) -> dict[str, Method]:
    """The methods without OpenCV's, if it is not installed."""
    if find_spec("cv2") is not None:
        return methods
    print("OpenCV is not installed: navier-stokes and telea are left out", file=sys.stderr)
    return {name: method for name, method in methods.items() if name not in (LOWER, "telea")}


def table(scores: Sequence[Score]) -> str:
    """A markdown table of the mean PSNR, with a row for each kind and method and two columns for each bin."""
    labels = list(dict.fromkeys(score.bin for score in scores))
    means: dict[tuple[str, str, str], float] = {}
    for key in dict.fromkeys((score.kind, score.method, score.bin) for score in scores):
        means[key] = fmean(score.psnr for score in scores if (score.kind, score.method, score.bin) == key)
    lines = []
    for kind, method in dict.fromkeys(key[:2] for key in means):
        number = len({score.scene for score in scores if score.kind == kind})
        line = [kind, str(number), method]
        for label in labels:
            value, upper = means[kind, method, label], means[kind, UPPER, label]
            lower = means.get((kind, LOWER, label))
            way = "-" if lower is None or lower == upper else f"{(value - lower) / (upper - lower):.0%}"
            line += [f"{value:.2f}", way]
        lines.append(line)
    header = ["scenes", "number", "method", *(part for label in labels for part in (f"dB, {label}", "of the way"))]
    return markdown_table(header, lines)


def contact_sheet(rows: Sequence[tuple[Case, Hole, dict[str, Image.Image]]], cell: int = 300) -> Image.Image:
    """A row for each case: the photo with a white hole, each result with its PSNR, and the truth."""
    columns, line, caption = len(rows[0][2]) + 2, cell + 16, 14
    sheet = Image.new("RGB", (columns * (cell + 4), len(rows) * line), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (case, hole, results) in enumerate(rows):
        truth = case.scene.photo
        cells = [(f"{case.kind} {case.index}, {case.bin} of each face", blank(truth, hole, 255))]
        cells += [(f"{name}: {hole_psnr(image, truth, hole):.2f} dB", image) for name, image in results.items()]
        for column, (text, image) in enumerate([*cells, ("truth", truth)]):
            image = image.copy()
            image.thumbnail((cell, cell - 2))
            draw.text((column * (cell + 4), row * line), text, fill="black")
            sheet.paste(image, (column * (cell + 4), row * line + caption))
    return sheet


def is_found(placement: Placement, points: NDArray[np.float64]) -> bool:
    """Whether five points (5, 2) are those of this face. `FOUND` describes the bound."""
    true = placement.points
    return bool(np.linalg.norm(points - true, axis=1).mean() < FOUND * np.linalg.norm(true[0] - true[1]))


def recall(scenes: Iterable[Case]) -> str:
    """A markdown table: faces that `showface.faces.find_faces` finds, without holes, with white and with filled ones.

    Holes are filled by Telea's method, so those rows need OpenCV. "others" are found faces that match no true one.
    """
    from showface.faces import find_faces

    telea = installed(METHODS).get("telea")
    counts: dict[tuple[str, str, str], list[int]] = {}
    first_bin = ""
    for case in scenes:
        scene, hole = case.scene, case.scene.hole(case.holes)
        first_bin = first_bin or case.bin
        shown = {("none", "-"): scene.photo} if case.bin == first_bin else {}  # all bins have the same photos
        shown[case.bin, "white"] = blank(scene.photo, hole, 255)
        if telea is not None:
            shown[case.bin, "filled"] = telea(blank(scene.photo, hole), hole)
        for key, photo in shown.items():
            points = [np.asarray(face.points, dtype=np.float64) for face in find_faces(photo)]
            matches = [[is_found(placement, five) for five in points] for placement in scene.placements]
            count = counts.setdefault((case.kind, *key), [0, 0, 0])
            count[0] += len(scene.placements)
            count[1] += sum(any(match) for match in matches)
            count[2] += sum(not any(match) for match in zip(*matches, strict=True))
    header = ["scenes", "hole", "shown", "faces", "found", "others"]
    return markdown_table(
        header,
        [[*key, str(faces), f"{found / faces:.0%}", str(others)] for key, (faces, found, others) in counts.items()],
    )


def run(
    files: Sequence[Path], masks: Sequence[Path], out: Path, bins: Sequence[Bin], seed: int = 0, sheet: int = 2
) -> list[Score]:
    """Score all methods; write the table, the scores and a sheet with the first scenes of each kind and bin."""
    methods, scores, shown = installed(METHODS), [], []
    for case in cases(files, masks, bins, seed):
        hole, results = fill(case, methods)
        truth = case.scene.photo
        scores += [
            Score(case.kind, case.index, case.bin, name, hole_psnr(image, truth, hole))
            for name, image in results.items()
        ]
        if case.index < sheet:
            shown.append((case, hole, results))
    write_text(out / "table.md", table(scores))
    lines = [",".join(str(value) for value in asdict(score).values()) for score in scores]
    write_text(out / "scores.csv", "\n".join(["kind,scene,bin,method,psnr", *lines]) + "\n")
    write_atomically(out / "contact-sheet.png", contact_sheet(shown).save)
    return scores


def read_bins(text: str) -> list[Bin]:
    """`"20-40,40-60"` is `[(0.2, 0.4), (0.4, 0.6)]`."""
    try:
        bins = [(float(low) / 100, float(high) / 100) for low, high in (part.split("-") for part in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"ratios must be like 20-40,40-60, got {text!r}") from None
    return bins


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="FACES_FOLDER", help="folders of aligned faces, used in turn")
    add("--masks", type=Path, help="folder of masks, white = hole; their ratios are measured (default: generate them)")
    add("--out", type=Path, default=Path("photo-scenes"), help="folder of the results (default photo-scenes)")
    add("--count", type=int, default=40, help="number of faces and of portraits (default 40)")
    add("--seed", type=int, default=0, help="seed of scenes and holes (default 0)")
    add("--ratios", type=read_bins, default="20-40,40-60", help="hole ratios in %% (default 20-40,40-60)")
    add("--faces", action="store_true", help="measure how many faces are found instead")
    arguments = parser.parse_args()
    folders = [find_images(folder) for folder in arguments.images]
    share = -(-arguments.count // len(folders))
    files = [folder[index] for index in range(share) for folder in folders if index < len(folder)][: arguments.count]
    if arguments.masks is not None:
        masks = find_images(arguments.masks)
    else:
        masks = generate_masks(arguments.out / "masks", SIDE, arguments.ratios, len(files), arguments.seed)
    if arguments.faces:
        print(recall(cases(files, masks, arguments.ratios, arguments.seed)), end="")
    else:
        print(table(run(files, masks, arguments.out, arguments.ratios, arguments.seed)), end="")


if __name__ == "__main__":
    main()
