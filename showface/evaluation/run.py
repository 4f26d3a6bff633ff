"""A complete evaluation: pairs, scores, tables, manifest and contact sheet, written into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from showface.batch import keep_apart
from showface.data import find_masks, list_faces, random_hole
from showface.data.folders import Folders, list_folders
from showface.evaluation.components import plan_components
from showface.evaluation.identity import IdentityDistance
from showface.evaluation.perceptual import LPIPS, FrechetDistances
from showface.evaluation.protocol import BINS, FINE_BINS, Bin, FillHole, Pair, Score, evaluate, plan
from showface.evaluation.report import (
    ALL_SETS,
    RegionRow,
    Row,
    markdown_table,
    region_table,
    summarise,
    summarise_regions,
    table,
    write_csv,
    write_json,
)
from showface.evaluation.sheet import choose_cases, contact_sheet
from showface.files import printable, write_atomically, write_text
from showface.models.config import MAX_IMAGE_SIZE

HOLES = ("free-form", "components")
"""The kinds of holes of `run_evaluation`."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `run_evaluation`: means, means by region, and all scores and pairs.

    `failed` has the photos that were left out because they, or their labels, can't be used: the reason by `set/name`.
    """

    rows: list[Row]
    regions: list[RegionRow]
    scores: list[Score] = field(repr=False)
    pairs: list[Pair] = field(repr=False)
    failed: dict[str, str] = field(default_factory=dict)


def generate_masks(folder: Path, size: int, bins: Sequence[Bin], count: int, seed: int) -> list[Path]:
    """Write `count` free-form masks per bin into a folder, as PNGs, white = hole. They depend only on the arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (low, high) in enumerate(bins):
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            # A bin excludes its lower bound, and the hole ratio is only exact to one pixel.
            hole = random_hole(size, size, rng, ratio=(low + 2 / size**2, high - 2 / size**2))
            path = folder / f"{low:g}-{high:g}-{i:04d}.png"
            write_atomically(path, Image.fromarray(hole).save)
            paths.append(path)
    return paths


def run_evaluation(
    systems: Mapping[str, FillHole],
    images: Folders,
    out: str | Path,
    masks: str | Path | None = None,
    *,
    holes: str = "free-form",
    size: int = 256,
    limit: int | None = None,
    seed: int = 0,
    fine: bool = False,
    lpips: LPIPS | None = None,
    identity: IdentityDistance | None = None,
    frechet: FrechetDistances | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score systems on the same pairs, and write everything into a folder.

        def mine(image, hole): ...      # (H, W, 3) uint8, (H, W) bool -> (H, W, 3) uint8
        run_evaluation({"mine": mine, "showface": model_system()}, ["faces"], "results", "masks")

    The files are `table.md`, `rows.csv`, `scores.csv`, `manifest.csv`, `results.json` and `contact-sheet.png`. The
    contact sheet shows typical and worst cases of the last system; the licence of the images applies to it too. A
    second run gives the same numbers.

    Args:
        systems: the function of each system, by name.
        images: a folder of faces, or several; each is an image set in the tables. Label images (0-18, PNG) are read
            from the folder `<name>_parsing` beside a folder, or beside one below it, as for `FaceFolder`.
        out: the folder, created if needed.
        masks: folder of masks, white = hole; by default one mask per image and bin is generated.
        holes: "free-form", in bins by hole ratio; or "components", which hide the eyes, the nose, the mouth or half of
            the face (see `component_hole`). The tables then have the component's name in the place of the bin, and
            how alike the two eyes are where one is hidden (see `eye_likeness`).
        size: side in pixels of the square images that are scored.
        limit: use only the first `limit` images of each folder.
        seed: seed of the generated masks and of their order.
        fine: use six bins instead of three.
        lpips, identity, frechet: more metrics, see `LPIPS`, `IdentityDistance` and `FrechetDistances`.
        overwrite: write over the results of another run.
        progress: called after each pair with the number of finished pairs and the total.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder does not exist.
        FileExistsError: `out` is a file; or it holds results, and `overwrite` is False.
        ValueError: no systems or images, two folders with the same name, one of several that is called `ALL_SETS`, a
            bin without a mask, an unknown value of `holes`, components together with `masks` or `fine`, no photo
            that can be read, or `out` is in a folder of faces or the other way round.
    """
    out, folders = Path(out), list_folders(images)
    names = [printable(folder.resolve().name) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"the folders of images must have different names, got {', '.join(names)}")
    if ALL_SETS in names and len(names) > 1:
        raise ValueError(f"one of several folders of images is called {ALL_SETS!r}, which means all sets: rename it")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if size > MAX_IMAGE_SIZE:
        raise ValueError(f"size must be at most {MAX_IMAGE_SIZE} pixels, got {size}")
    if holes not in HOLES:
        raise ValueError(f"holes must be one of {', '.join(HOLES)}, got {holes!r}")
    if holes == "components" and (masks is not None or fine):
        raise ValueError("component holes are made from the faces: they go with neither masks nor finer bins")
    bins = FINE_BINS if fine else BINS
    _check_output(out, folders, overwrite)
    found = {name: dict(list_faces(folder)[:limit]) for name, folder in zip(names, folders, strict=True)}
    mask_files = [] if masks is None else find_masks(masks)
    out.mkdir(parents=True, exist_ok=True)
    if holes == "free-form" and masks is None:
        mask_files = generate_masks(out / "masks", size, bins, max(map(len, found.values())), seed)
    pairs: list[Pair] = []
    for name, faces in found.items():
        labels = {path: label for path, label in faces.items() if label is not None}
        if holes == "components":
            pairs += plan_components(list(faces), out / "masks" / name, size, image_set=name, labels=labels)
        else:
            pairs += plan(list(faces), mask_files, size, bins, seed, image_set=name, labels=labels)
    lost: dict[Pair, str] = {}
    scores = evaluate(
        systems,
        pairs,
        lpips=lpips,
        identity=identity,
        frechet=frechet,
        aligned=holes == "components",
        progress=progress,
        on_failure=lost.__setitem__,
    )
    failed = {f"{pair.image_set}/{printable(pair.image.name)}": printable(why) for pair, why in lost.items()}
    pairs = [pair for pair in pairs if pair not in lost]
    if not pairs:
        raise ValueError(f"no photo can be read: {'; '.join(failed.values())}")
    rows, regions = summarise(scores, frechet), summarise_regions(scores)

    described = {
        "size": size,
        "seed": seed,
        "holes": holes,
        "limit": limit,
        "systems": list(systems),
        "failed": failed,
    }
    text = markdown_table(*table(rows))
    if regions:
        text += "\n" + markdown_table(*region_table(regions))
    write_text(out / "table.md", text)
    write_csv(rows, out / "rows.csv")
    write_csv(scores, out / "scores.csv")
    write_csv(pairs, out / "manifest.csv")
    write_json(out / "results.json", rows=rows, regions=regions, scores=scores, pairs=pairs, settings=described)
    sheet = contact_sheet(choose_cases(pairs, scores, list(systems)[-1]), systems, size)
    write_atomically(out / "contact-sheet.png", sheet.save)
    return Evaluation(rows, regions, scores, pairs, failed)


def _check_output(out: Path, folders: Iterable[Path], overwrite: bool) -> None:
    """Check, before any work starts, that results can be written into this folder.

    Raises:
        FileExistsError: it is a file, or it holds results and `overwrite` is False.
        ValueError: it is in a folder of faces, or the other way round.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"results are written into a folder, but {out} is a file")
    for folder in folders:
        keep_apart(folder, out)
    if (out / "results.json").exists() and not overwrite:
        raise FileExistsError(f"{out} holds results already: give another folder, or --overwrite")
