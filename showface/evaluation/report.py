"""Means over scores, and how they are written: CSV, JSON, and a table in markdown.

Files are written under a temporary name and then renamed, so a broken run never leaves half a file behind.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from showface.evaluation.protocol import Pair, Score
from showface.files import write_text

__all__ = ["ALL_SETS", "Row", "markdown_table", "summarise", "write_csv", "write_json"]

ALL_SETS = "all"
"""The set's name in a `Row` that takes the mean over every image set."""


@dataclass(frozen=True)
class Row:
    """Means over the `images` images of a set (or of `ALL_SETS`) in a bin.

    `altered_images` counts those of which the system changed known pixels before the harness put them back.
    """

    system: str
    image_set: str
    bin: str
    images: int
    ratio: float
    l1_percent: float
    hole_l1_percent: float
    psnr: float
    ssim: float
    altered_images: int


def summarise(scores: Sequence[Score]) -> list[Row]:
    """Means per system, image set and bin, in the order of the scores; with several sets, those over all too.

    Each mean is over images, PSNR included: the squared error isn't pooled.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    sets = list(dict.fromkeys(score.image_set for score in scores))
    for name in [*sets, ALL_SETS] if len(sets) > 1 else sets:
        for score in scores:
            if name in (score.image_set, ALL_SETS):
                groups.setdefault((name, score.bin, score.system), []).append(score)
    return [
        Row(
            system=system,
            image_set=image_set,
            bin=label,
            images=len(group),
            ratio=fmean(s.ratio for s in group),
            l1_percent=fmean(s.l1_percent for s in group),
            hole_l1_percent=fmean(s.hole_l1_percent for s in group),
            psnr=fmean(s.psnr for s in group),
            ssim=fmean(s.ssim for s in group),
            altered_images=sum(s.altered_known > 0 for s in group),
        )
        for (image_set, label, system), group in groups.items()
    ]


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table, ending in a newline."""
    lines = [
        "| set | hole | system | images | L1 % | hole L1 % | PSNR dB | SSIM | altered |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.image_set} | {row.bin} | {row.system} | {row.images} | {row.l1_percent:.3f} | "
        f"{row.hole_l1_percent:.2f} | {row.psnr:.2f} | {row.ssim:.4f} | {row.altered_images} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def write_csv(records: Sequence[Row] | Sequence[Score] | Sequence[Pair], path: str | Path) -> None:
    """Write rows, scores or pairs (the manifest), one a line under a header.

    Raises:
        ValueError: no records, hence no header.
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
    scores: Sequence[Score] = (),
    pairs: Sequence[Pair] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write one JSON object with the keys `settings`, `rows`, `scores` and `manifest` (the pairs).

    Args:
        path: the file; its folder is made if it isn't there.
        rows: from `summarise`.
        scores: from `evaluate`.
        pairs: from `plan`.
        settings: whatever else is needed to run it again, such as the seed.
    """
    content = {
        "settings": dict(settings or {}),
        "rows": [_flat(row) for row in rows],
        "scores": [_flat(score) for score in scores],
        "manifest": [_flat(pair) for pair in pairs],
    }
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _flat(record: Row | Score | Pair) -> dict[str, Any]:
    return record.record() if isinstance(record, Pair) else asdict(record)
