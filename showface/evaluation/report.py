"""Means over scores, written as CSV, JSON and markdown tables. All files are written atomically."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from showface.data import REGIONS
from showface.evaluation.perceptual import FrechetDistances
from showface.evaluation.protocol import Pair, Score
from showface.files import write_text

ALL_SETS = "all"
"""The `image_set` of a `Row` that holds the means over all image sets."""


@dataclass(frozen=True)
class Row:
    """The means of a system over the images of a set (or of `ALL_SETS`) in a bin.

    Attributes:
        images: number of images.
        sharpness_percent: the results' mean gradient in the holes as a percentage of the targets'; None if the targets
            are flat.
        altered_images: number of images in which the system changed known pixels. (They are restored before scoring.)
        eyes_percent: the results' mean `eye_likeness` as a percentage of the targets', where an eye is hidden.
        lpips, identity, eyes_percent, fid: None if not measured.
    """

    system: str
    image_set: str
    bin: str
    images: int
    ratio: float
    l1_percent: float
    hole_l1_percent: float
    seam_l1_percent: float
    psnr: float
    ssim: float
    sharpness_percent: float | None
    altered_images: int
    lpips: float | None = None
    identity: float | None = None
    eyes_percent: float | None = None
    fid: float | None = None


@dataclass(frozen=True)
class RegionRow:
    """The mean L1 error in holes within one region of the face, over `pixels` pixels of all bins, as a percentage."""

    system: str
    region: str
    pixels: int
    hole_l1_percent: float


Record: TypeAlias = Row | RegionRow | Score | Pair


def summarise(scores: Sequence[Score], frechet: FrechetDistances | None = None) -> list[Row]:
    """Compute means per system, image set and bin, in the order of the scores; with several sets, also over all sets.

    All metrics are averaged over images, including PSNR: squared errors are not pooled. `frechet` must have been filled
    by `evaluate`.

    Raises:
        ValueError: one of several image sets is called `ALL_SETS`.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    sets = list(dict.fromkeys(score.image_set for score in scores))
    if ALL_SETS in sets and len(sets) > 1:
        raise ValueError(f"no image set may be called {ALL_SETS!r}, which stands for the means over all sets")
    for name in [*sets, ALL_SETS] if len(sets) > 1 else sets:
        for score in scores:
            if name in (score.image_set, ALL_SETS):
                groups.setdefault((name, score.bin, score.system), []).append(score)
    rows = []
    for (image_set, label, system), group in groups.items():
        distances = [score.lpips for score in group if score.lpips is not None]
        identities = [score.identity for score in group if score.identity is not None]
        eyes = [(s.eye_likeness, s.target_eye_likeness) for s in group if s.eye_likeness is not None]
        own = sum(target or 0.0 for _, target in eyes)
        gradient = sum(score.target_gradient_percent for score in group)
        members = sets if image_set == ALL_SETS else [image_set]
        rows.append(
            Row(
                system=system,
                image_set=image_set,
                bin=label,
                images=len(group),
                ratio=fmean(s.ratio for s in group),
                l1_percent=fmean(s.l1_percent for s in group),
                hole_l1_percent=fmean(s.hole_l1_percent for s in group),
                seam_l1_percent=fmean(s.seam_l1_percent for s in group),
                psnr=fmean(s.psnr for s in group),
                ssim=fmean(s.ssim for s in group),
                sharpness_percent=100 * sum(s.hole_gradient_percent for s in group) / gradient if gradient else None,
                altered_images=sum(s.altered_known > 0 for s in group),
                lpips=fmean(distances) if distances else None,
                identity=fmean(identities) if identities else None,
                eyes_percent=100 * sum(eye for eye, _ in eyes) / own if own > 0 else None,
                fid=frechet.distance(*((system, member, label) for member in members)) if frechet else None,
            )
        )
    return rows


def summarise_regions(scores: Sequence[Score]) -> list[RegionRow]:
    """The error of each system by region, over all images with known regions."""
    sums: dict[tuple[str, int], tuple[float, int]] = {}
    for score in scores:
        for region, (percent, pixels) in score.regions.items():
            total, count = sums.get((score.system, region), (0.0, 0))
            sums[score.system, region] = total + percent * pixels, count + pixels
    return [
        RegionRow(system, REGIONS[region], count, total / count)
        for (system, region), (total, count) in sorted(sums.items(), key=lambda item: item[0][1])
    ]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of the rows. Metrics that were not measured have no column."""
    header = ["set", "hole", "system", "images", "L1 %", "hole L1 %", "seam L1 %", "PSNR dB", "SSIM", "sharpness %"]
    names = {"lpips": "LPIPS", "identity": "IDENTITY", "eyes_percent": "eyes %", "fid": "FID"}
    extra = [name for name in names if any(getattr(row, name) is not None for row in rows)]
    cells = []
    for row in rows:
        measured = [getattr(row, name) for name in extra]
        cells.append(
            [
                row.image_set,
                row.bin,
                row.system,
                str(row.images),
                f"{row.l1_percent:.3f}",
                f"{row.hole_l1_percent:.2f}",
                f"{row.seam_l1_percent:.2f}",
                f"{row.psnr:.2f}",
                f"{row.ssim:.4f}",
                "-" if row.sharpness_percent is None else f"{row.sharpness_percent:.1f}",
                *("-" if value is None else f"{value:.4g}" for value in measured),
                str(row.altered_images),
            ]
        )
    return [*header, *(names[name] for name in extra), "altered"], cells


def region_table(rows: Sequence[RegionRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with a row per region and a column per system."""
    systems = list(dict.fromkeys(row.system for row in rows))
    by_region: dict[str, dict[str, RegionRow]] = {}
    for row in rows:
        by_region.setdefault(row.region, {})[row.system] = row
    cells = [
        [region, str(next(iter(found.values())).pixels), *(f"{found[name].hole_l1_percent:.2f}" for name in systems)]
        for region, found in by_region.items()
    ]
    return ["region", "hole pixels", *systems], cells


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A markdown table, ending in a newline. Columns of numbers are aligned right."""
    numbers = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    lines = [header, ["--:" if number else "---" for number in numbers], *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).replace("-", "", 1).isdigit()


def write_csv(records: Sequence[Record], path: str | Path) -> None:
    """Write rows, scores or pairs (the manifest) below a header, one per line.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("there is nothing to write")
    lines = [_flat(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def write_json(
    path: str | Path,
    *,
    rows: Sequence[Row] = (),
    regions: Sequence[RegionRow] = (),
    scores: Sequence[Score] = (),
    pairs: Sequence[Pair] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write one JSON object with the keys `settings`, `rows`, `regions`, `scores` and `manifest` (the pairs).

    Args:
        path: the file; its folder is created if needed.
        rows, regions: from `summarise` and `summarise_regions`.
        scores: from `evaluate`.
        pairs: from `plan`.
        settings: anything else that is needed to repeat the evaluation, such as the seed.
    """
    content = {
        "settings": dict(settings or {}),
        "rows": [_flat(row) for row in rows],
        "regions": [_flat(row) for row in regions],
        "scores": [_flat(score) for score in scores],
        "manifest": [_flat(pair) for pair in pairs],
    }
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _flat(record: Record) -> dict[str, Any]:
    if isinstance(record, Pair):
        return record.record()
    fields = asdict(record)
    if isinstance(record, Score):
        fields["regions"] = {REGIONS[region]: percent for region, (percent, _) in record.regions.items()}
    return fields
