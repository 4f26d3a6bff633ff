"""The poster's table beside our results: the best system in each bin and metric, and its margin.

    python experiments/poster_table.py results/results.json [another-seed/results.json ...] > table.md

Reads the results of `showface evaluate`. Several files must be runs of the same systems with different seeds; their
means and ranges are shown. Published figures are quoted but not compared, since they are for full test sets at 256
pixels and models that were trained much longer.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from showface.evaluation import BINS, bin_label, markdown_table

OURS = "mdrnets"
LABELS = [bin_label(bounds) for bounds in BINS]
METRICS = {  # name in a results file: heading, digits, whether lower is better
    "l1_percent": ("L1 %", 3, True),
    "fid": ("FID", 2, True),
    "psnr": ("PSNR dB", 2, False),
    "ssim": ("SSIM", 4, False),
}
# L1 %, FID, PSNR and SSIM, each for the three bins, as printed in the poster's table.
PUBLISHED = {
    "celebahq": {
        "PConv": "1.131 2.311 4.363 12.716 27.957 42.594 32.240 26.085 21.900 0.941 0.862 0.762",
        "DeepFillv2": "0.788 2.066 3.968 9.766 22.793 29.243 32.700 25.998 21.943 0.944 0.848 0.736",
        "PIC": "0.780 2.036 4.311 4.190 11.035 21.360 33.006 25.961 21.263 0.951 0.859 0.730",
        "CTSDG": "1.350 2.213 3.900 9.171 14.324 22.889 32.198 26.823 22.490 0.927 0.856 0.747",
        "DSI": "0.820 2.077 4.149 9.037 20.327 29.040 32.699 26.107 21.708 0.938 0.831 0.704",
        "ICT": "0.949 2.004 3.901 3.136 8.715 16.747 33.416 26.639 22.013 0.959 0.879 0.765",
        "MDRNets": "0.585 1.451 2.937 2.369 6.410 12.086 35.772 28.669 24.177 0.968 0.900 0.800",
    },
    "ffhq": {
        "PConv": "0.720 2.178 4.411 12.208 30.403 45.709 32.592 25.422 21.237 0.955 0.867 0.761",
        "DeepFillv2": "0.715 2.104 4.250 12.062 29.276 40.295 32.428 25.470 21.301 0.946 0.845 0.725",
        "PIC": "0.709 2.099 4.573 5.411 14.344 27.334 32.640 25.490 20.819 0.952 0.854 0.719",
        "CTSDG": "0.419 1.532 3.569 3.916 13.477 28.495 34.946 27.044 22.272 0.968 0.888 0.765",
        "DSI": "0.746 2.067 4.340 10.483 25.772 39.127 32.659 25.780 21.241 0.941 0.834 0.702",
        "ICT": "0.982 2.085 4.036 3.244 8.360 14.149 33.172 26.373 21.809 0.959 0.877 0.762",
        "MDRNets": "0.470 1.395 3.068 2.473 7.170 13.748 36.046 28.333 23.575 0.972 0.903 0.797",
    },
}

Cell = tuple[str, str, str, str]  # set, system, metric, bin


@dataclass(frozen=True)
class Results:
    """The results of several runs: for each run, the mean of each cell and the PSNR of each pair."""

    sets: list[str]
    systems: list[str]
    values: dict[Cell, list[float]]
    psnr: dict[tuple[str, str, str], dict[tuple[str, str], list[float]]]  # set, system, bin: image, mask: of each run

    def mean(self, *cell: str) -> float | None:
        """The mean of a cell over all runs; None if it was not measured."""
        found = self.values.get(cell)  # type: ignore[call-overload]
        return fmean(found) if found else None


def read(files: Sequence[Path]) -> Results:
    """Read results files. Raises ValueError if their systems, sets or pairs differ."""
    values: dict[Cell, list[float]] = defaultdict(list)
    psnr: dict[tuple[str, str, str], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    shapes = []
    for file in files:
        content: dict[str, Any] = json.loads(file.read_text())
        for row in content["rows"]:
            for metric in METRICS:
                if row[metric] is not None:
                    values[row["image_set"], row["system"], metric, row["bin"]].append(row[metric])
        for score in content["scores"]:
            pair = Path(score["image"]).name, Path(score["mask"]).name
            psnr[score["image_set"], score["system"], score["bin"]][pair].append(score["psnr"])
        shapes.append(sorted((row["image_set"], row["system"], row["bin"], row["images"]) for row in content["rows"]))
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the files differ in systems, image sets or bins")
    if any(len(runs) != len(files) for pairs in psnr.values() for runs in pairs.values()):
        raise ValueError("the files differ in their pairs of images and masks")
    sets = [name for name in dict.fromkeys(cell[0] for cell in values) if name != "all"]
    return Results(sets, list(dict.fromkeys(cell[1] for cell in values)), dict(values), dict(psnr))


def comparison(results: Results, image_set: str) -> str:
    """The table of one image set, as in the poster: our results with the best in bold, and the published ones."""
    metrics = [metric for metric in METRICS if results.mean(image_set, results.systems[0], metric, LABELS[0])]
    header = ["system", *(f"{METRICS[metric][0]} {label}" for metric in metrics for label in LABELS)]
    lines = []
    for system in results.systems:
        line = [f"**{system}**" if system == OURS else system]
        for metric in metrics:
            for label in LABELS:
                best = winners(results, image_set, metric, label)[0]
                value = f"{results.mean(image_set, system, metric, label):.{METRICS[metric][1]}f}"
                line.append(f"**{value}**" if system == best else value)
        lines.append(line)
    for name, figures in PUBLISHED.get(image_set, {}).items():
        of_metric = dict(zip(METRICS, zip(*[iter(figures.split())] * len(LABELS), strict=True), strict=True))
        lines.append([f"*{name}, published*", *(f"*{value}*" for metric in metrics for value in of_metric[metric])])
    return markdown_table(header, lines)


def winners(results: Results, image_set: str, metric: str, label: str) -> list[str]:
    """All systems, from best to worst."""
    sign = 1 if METRICS[metric][2] else -1
    return sorted(results.systems, key=lambda system: sign * (results.mean(image_set, system, metric, label) or 0))


def wins(results: Results) -> str:
    """A table of the best and second-best system, and the rank of MDRNets, for each set, metric and bin."""
    lines = []
    for image_set in results.sets:
        for metric, (heading, digits, _) in METRICS.items():
            for label in LABELS:
                if results.mean(image_set, results.systems[0], metric, label) is None:
                    continue
                order = winners(results, image_set, metric, label)
                place = f"{order.index(OURS) + 1} of {len(order)}" if OURS in order else "-"
                following, margin = "-", "-"
                if len(order) > 1:
                    first, second = (results.mean(image_set, system, metric, label) or 0 for system in order[:2])
                    following, margin = order[1], f"{abs(first - second):.{digits}f}"
                lines.append([image_set, heading, label, order[0], following, margin, place])
    return markdown_table(["set", "metric", "hole", "best", "next", "margin", OURS], lines)


def differences(results: Results) -> str:
    """A table of MDRNets' PSNR minus that of each system, paired by image and hole, over all sets.

    A cell has the mean over runs and pairs, and its standard error over pairs. With several runs, it also has the range
    of the runs' means.
    """
    lines = []
    for system in results.systems:
        if system == OURS:
            continue
        line = [system]
        for label in LABELS:
            by_pair = [
                [a - b for a, b in zip(ours, results.psnr[image_set, system, label][pair], strict=True)]
                for image_set in results.sets
                for pair, ours in results.psnr[image_set, OURS, label].items()
            ]
            means = [fmean(differences) for differences in by_pair]
            text = f"{fmean(means):+.3f} ± {stdev(means) / len(means) ** 0.5:.3f}"
            runs = [fmean(run) for run in zip(*by_pair, strict=True)]
            line.append(text + (f" ({min(runs):+.3f} to {max(runs):+.3f})" if len(runs) > 1 else ""))
        lines.append(line)
    return markdown_table(["MDRNets less", *(f"dB, {label}" for label in LABELS)], lines)


def report(files: Sequence[Path]) -> str:
    """All tables, in markdown."""
    results = read(files)
    parts = [f"{image_set}\n\n{comparison(results, image_set)}" for image_set in results.sets]
    parts.append(f"who wins\n\n{wins(results)}")
    if OURS in results.systems and len(results.systems) > 1:
        parts.append(f"PSNR, paired\n\n{differences(results)}")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="results.json of `showface evaluate`, one per seed")
    print(report(parser.parse_args().files), end="")


if __name__ == "__main__":
    main()
