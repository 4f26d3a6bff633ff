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
from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image, ImageDraw

import showface
from showface.crops import Crop
from showface.data import find_images
from showface.evaluation import bin_label, classical_system, generate_masks, markdown_table, plan, psnr, read_hole
from showface.files import write_atomically, write_text

from scenes import GROUP, SIDE, Album, Hole, Placement, Scene, invert, warp

Method = Callable[[Image.Image, Hole], Image.Image]
Bin = tuple[float, float]

LOWER, UPPER = "navier-stokes", "aligned crop"
FOUND = 0.5
"""A face counts as found if the intersection over union of its aligned crop and the true one is at least this."""


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


def true_square(placement: Placement) -> Crop:
    """Where a face's aligned crop lies in the photo."""
    (dx, _, x), (dy, _, y) = SIDE * placement.matrix
    return Crop(x / SIDE, y / SIDE, dx, dy, is_face=True)


def overlap(crop: Crop, other: Crop) -> float:
    """The intersection over union of two crops."""
    across = (np.arange(64) + 0.5) / 64
    unit = other.to_unit(crop.to_photo(np.stack(np.meshgrid(across, across), axis=-1)))
    shared = float(((unit > 0) & (unit < 1)).all(axis=-1).mean()) * crop.side**2
    return shared / (crop.side**2 + other.side**2 - shared)


def recall(scenes: Iterable[Case]) -> str:
    """A markdown table: how many faces are found, without holes, with white ones, and by `showface.Inpainter`.

    "error" is the mean distance of the farthest corner of a found crop, as a fraction of its side. "others" are crops
    that overlap no face.
    """
    from showface.faces import find_faces

    inpainter = showface.Inpainter()
    counts: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for case in scenes:
        hole = case.scene.hole(case.holes)
        white = blank(case.scene.photo, hole, 255)
        shown = {"as it is": [Crop.of_face(face.points) for face in find_faces(white)]}
        if hole.any():
            shown["restored"] = [crop for crop in inpainter.restore(white, hole).crops if crop.is_face]
        true = [true_square(placement) for placement in case.scene.placements]
        for name, crops in shown.items():
            errors, others = counts.setdefault((case.kind, case.bin, name), ([], []))
            for square in true:
                best = max(crops, key=lambda crop: overlap(crop, square), default=None)
                found = best is not None and overlap(best, square) >= FOUND
                errors.append(best.distance(square) if best is not None and found else np.nan)
            others.append(sum(max(overlap(crop, square) for square in true) < FOUND / 2 for crop in crops))
    lines = []
    for key, (errors, others) in counts.items():
        share = 1 - np.isnan(errors).mean()
        error = f"{np.nanmean(errors):.2f}" if share else "-"
        lines.append([*key, str(len(errors)), f"{share:.0%}", error, f"{sum(others):.0f}"])
    return markdown_table(["scenes", "hole", "looked at", "faces", "found", "error", "others"], lines)


def without_holes(files: Sequence[Path], seed: int) -> Iterator[Case]:
    """The scenes of `cases`, without holes."""
    album, empty = Album(files, seed), np.zeros((SIDE, SIDE), dtype=np.bool_)
    for index in range(len(files)):
        yield Case("portrait", index, "none", album.portrait(index), [empty])
    for index in range(len(files) // GROUP):
        yield Case("group", index, "none", album.group(index), [empty] * GROUP)


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
        scenes = cases(files, masks, arguments.ratios, arguments.seed)
        print(recall(chain(without_holes(files, arguments.seed), scenes)), end="")
    else:
        print(table(run(files, masks, arguments.out, arguments.ratios, arguments.seed)), end="")


if __name__ == "__main__":
    main()
