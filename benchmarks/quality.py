"""Compare trained models and OpenCV's inpainting on folders of aligned faces and a folder of masks.

    python benchmarks/quality.py --images faces/celebahq --images faces/ffhq --masks masks \\
        --model runs/mdrnets --baseline telea --baseline navier-stokes --out results

Prints a table per image set and bin, and writes into the output folder: `quality.json` (settings, means,
scores, manifest of pairs), `quality.md` (the table), and `quality.png` (a contact sheet of typical and worst
cases; it shows the images, whose licence holds for it too).
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from showface import evaluation as ev
from showface.data import find_images
from showface.files import write_atomically, write_text

BASELINES = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}
TYPICAL, WORST = 2, 2  # lines of the contact sheet in each bin
MARGIN = 4
CAPTION = 16


def opencv_system(name: str, radius: float) -> ev.System:
    """OpenCV's inpainting as a system; `name` is a key of `BASELINES`, `radius` in pixels."""

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        filled = cv2.inpaint(image, hole.astype(np.uint8) * 255, radius, BASELINES[name])
        return np.asarray(filled, dtype=np.uint8)

    return run


def model_system(folder: Path, device: str) -> ev.System:
    """The model saved in a folder as a system."""
    import showface

    model = showface.MDRNets.from_pretrained(folder).to(device).eval()

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        filled = showface.inpaint(Image.fromarray(image), hole, model=model)
        return np.array(filled.convert("RGB"), dtype=np.uint8)

    return run


def print_table(rows: list[ev.Row], console: Console) -> None:
    """Print the means, a rule between image sets and a gap between bins."""
    table = Table()
    for column in ("set", "hole", "system"):
        table.add_column(column, no_wrap=True)
    for column in ("images", "L1 %", "hole L1 %", "PSNR dB", "SSIM", "altered"):
        table.add_column(column, justify="right")
    for _, group in itertools.groupby(rows, key=lambda row: (row.image_set, row.bin)):
        for row in group:
            table.add_row(
                row.image_set,
                row.bin,
                row.system,
                str(row.images),
                f"{row.l1_percent:.3f}",
                f"{row.hole_l1_percent:.2f}",
                f"{row.psnr:.2f}",
                f"{row.ssim:.4f}",
                str(row.altered_images),
            )
        table.add_section()
    console.print(table)


def choose(pairs: list[ev.Pair], scores: list[ev.Score], system: str) -> list[tuple[str, ev.Pair]]:
    """The pairs to show: in each bin those around the system's median PSNR, then those of its lowest."""
    mine = [score for score in scores if score.system == system]  # in the pairs' order
    chosen = []
    for label in dict.fromkeys(score.bin for score in mine):
        ranked = sorted((score.psnr, i) for i, score in enumerate(mine) if score.bin == label)
        worst, rest = ranked[:WORST], ranked[WORST:]
        middle = max(0, len(ranked) // 2 - WORST - TYPICAL // 2)
        chosen += [("typical", pairs[i]) for _, i in rest[middle : middle + TYPICAL]]
        chosen += [("worst", pairs[i]) for _, i in worst]
    return chosen


def contact_sheet(chosen: list[tuple[str, ev.Pair]], systems: dict[str, ev.System], size: int) -> Image.Image:
    """One line a pair: the input with its hole white, each system's composite with its PSNR, the target."""
    step, line = size + MARGIN, size + MARGIN + CAPTION
    sheet = Image.new("RGB", (step * (len(systems) + 2) + MARGIN, line * len(chosen) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (kind, pair) in enumerate(chosen):
        runs = {name: ev.complete(system, pair) for name, system in systems.items()}
        target = next(iter(runs.values()))[0]
        shown = target.copy()
        shown[ev.read_hole(pair.mask, size)] = 255
        cells = [(f"{kind}, {pair.image_set}/{pair.image.stem}, {pair.ratio:.0%} hole", shown)]
        cells += [(f"{name}: {ev.psnr(run[1], target):.2f} dB", run[1]) for name, run in runs.items()]
        cells += [("target", target)]
        for column, (caption, image) in enumerate(cells):
            x, y = MARGIN + column * step, MARGIN + row * line
            draw.text((x, y), caption, fill="black")
            sheet.paste(Image.fromarray(image), (x, y + CAPTION))
    return sheet


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--images", type=Path, action="append", required=True, help="folder of faces; repeatable")
    add("--masks", type=Path, required=True, help="folder of masks, white = hole")
    add("--model", type=Path, action="append", default=[], help="folder of a model; repeatable")
    add("--baseline", choices=sorted(BASELINES), action="append", default=[], help="repeatable")
    add("--radius", type=float, default=3, help="OpenCV's inpainting radius in pixels (default 3)")
    add("--limit", type=int, help="take only the first N images of each folder")
    add("--size", type=int, default=256, help="side at which images are scored (default 256)")
    add("--seed", type=int, default=0, help="deals out the masks (default 0)")
    add("--fine", action="store_true", help="six bins of 10%% in place of three of 20%%")
    add("--device", default="cpu", help="where models run (default cpu)")
    add("--out", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    for what in ("images", "model"):
        names = [folder.resolve().name for folder in getattr(arguments, what)]
        if len(set(names)) < len(names):
            parser.error(f"--{what}: results go by the folders' names, which must differ: {', '.join(names)}")
    if clash := {folder.resolve().name for folder in arguments.model} & BASELINES.keys():
        parser.error(f"--model: a folder must not be named like a baseline: {', '.join(sorted(clash))}")
    if not arguments.model and not arguments.baseline:
        parser.error("give at least one --model or --baseline")
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    console = Console(width=None if os.isatty(1) else 120)
    systems = {name: opencv_system(name, arguments.radius) for name in dict.fromkeys(arguments.baseline)}
    systems |= {folder.resolve().name: model_system(folder, arguments.device) for folder in arguments.model}

    masks = find_images(arguments.masks)
    bins = ev.FINE_BINS if arguments.fine else ev.BINS
    pairs: list[ev.Pair] = []
    for folder in arguments.images:
        images = find_images(folder)[: arguments.limit]
        pairs += ev.plan(images, masks, arguments.size, bins, arguments.seed, image_set=folder.resolve().name)

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=len(pairs))
        scores = ev.evaluate(systems, pairs, progress=lambda done, _: bar.update(task, completed=done))
    rows = ev.summarise(scores)
    print_table(rows, console)

    settings = {
        "size": arguments.size,
        "seed": arguments.seed,
        "limit": arguments.limit,
        "opencv_radius": arguments.radius if arguments.baseline else None,
        "systems": list(systems),
    }
    ev.write_json(arguments.out / "quality.json", rows=rows, scores=scores, pairs=pairs, settings=settings)
    write_text(arguments.out / "quality.md", ev.markdown_table(rows))
    # The cases are chosen by the last system named: a model where there is one.
    sheet = contact_sheet(choose(pairs, scores, list(systems)[-1]), systems, arguments.size)
    write_atomically(arguments.out / "quality.png", sheet.save)
    console.print(f"written to {arguments.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
