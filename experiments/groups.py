"""PSNR by group of people: the mean of a system, and its gain over a classical method on the same pairs.

    showface evaluate --images celebahq --images ffhq --masks masks --out results \\
        --model default --baseline navier-stokes
    python experiments/groups.py results/results.json --images celebahq ffhq

`results/groups.json` names the faces of each group, which were picked by eye. Two more groups are made from the skin's
lightness, as the network's own parsing finds the skin. Prints a table in Markdown. Gains in brackets, with the standard
error over the pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

import showface
from showface.data import REGIONS, find_images, image_to_tensor, read_image, resize_and_crop
from showface.evaluation import markdown_table

RECORD = Path(__file__).parent / "results" / "groups.json"
Face = tuple[str, str]  # the name of the set, and of the file


def lightness(pixels: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB pixels (N, 3) uint8, 0 to 100."""
    values = pixels / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


@torch.inference_mode()
def skin_lightness(path: Path, model: showface.MDRNets) -> float:
    """The median L* of the skin that the network finds in a whole face."""
    photo = resize_and_crop(read_image(path), model.config.image_size)
    image = image_to_tensor(photo)[None]
    parsing = model(image, torch.zeros_like(image[:, :1])).parsing.argmax(1)[0]
    small = np.asarray(photo.resize((parsing.shape[1], parsing.shape[0])))
    return float(np.median(lightness(small[parsing.numpy() == REGIONS.index("skin")])))


def quarters(values: Mapping[Face, float]) -> dict[str, set[Face]]:
    """The darkest and the lightest quarter of the faces."""
    order = sorted(values, key=values.__getitem__)
    count = len(order) // 4
    dark, light = order[:count], order[-count:]
    return {
        f"darkest quarter of skin (L* up to {values[dark[-1]]:.1f})": set(dark),
        f"lightest quarter of skin (L* from {values[light[0]]:.1f})": set(light),
    }


def table(scores: Sequence[Mapping[str, Any]], groups: Mapping[str, set[Face]], system: str, against: str) -> str:
    """A row for each group: the number of faces, and for each bin the mean PSNR, the gain and its standard error."""
    found = {(x["system"], x["bin"], (x["image_set"], x["image"])): x["psnr"] for x in scores}
    bins = list(dict.fromkeys(x["bin"] for x in scores))
    rows = []
    for name, faces in groups.items():
        row = [name, str(len(faces))]
        for bounds in bins:
            pairs = [(found[system, bounds, face], found[against, bounds, face]) for face in sorted(faces)]
            gains = [ours - theirs for ours, theirs in pairs]
            error = stdev(gains) / len(gains) ** 0.5
            row.append(f"{fmean(ours for ours, _ in pairs):.2f} ({fmean(gains):.2f} ± {error:.2f})")
        rows.append(row)
    return markdown_table(["group", "faces", *bins], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json of showface evaluate")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="the folders of faces that it evaluated")
    parser.add_argument("--system", default="showface default")
    parser.add_argument("--against", default="navier-stokes")
    options = parser.parse_args()
    scores = json.loads(options.results.read_text())["scores"]
    systems = sorted({x["system"] for x in scores})
    for wanted in (options.system, options.against):
        if wanted not in systems:
            parser.error(f"{options.results} has no system {wanted!r}: it has {', '.join(systems)}")
    known = {(x["image_set"], x["image"]) for x in scores}
    picked = {
        name: {(images, file) for images, files in sets.items() for file in files}
        for name, sets in json.loads(RECORD.read_text()).items()
    }
    missing = set().union(*picked.values()) - known
    if missing:
        parser.error(f"{options.results} lacks faces of the groups, such as {'/'.join(min(missing))}")
    model = showface.load_model("psnr")
    faces = {(folder.name, path.name): path for folder in options.images for path in find_images(folder)}
    skin = {face: skin_lightness(path, model) for face, path in faces.items() if face in known}
    groups = {"all": known, **picked, **quarters(skin)}
    print(table(scores, groups, options.system, options.against), end="")


if __name__ == "__main__":
    main()
