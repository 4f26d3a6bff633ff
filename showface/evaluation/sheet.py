"""A contact sheet: inputs, results and targets of typical and of the worst cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from showface.evaluation.metrics import psnr
from showface.evaluation.protocol import FillHole, Pair, Score, complete, read_hole
from showface.files import printable

_TYPICAL, _WORST = 2, 2  # cases of each bin
_MARGIN, _CAPTION = 4, 16  # pixels


def choose_cases(pairs: Sequence[Pair], scores: Sequence[Score], system: str) -> list[tuple[str, Pair]]:
    """Choose the cases to show from each bin: cases around a system's median PSNR, then cases with its lowest PSNR.

    Returns pairs with their kind, "typical" or "worst".
    """
    mine = [score for score in scores if score.system == system]  # in the order of the pairs
    chosen: list[tuple[str, Pair]] = []
    for label in dict.fromkeys(score.bin for score in mine):
        ranked = sorted((score.psnr, i) for i, score in enumerate(mine) if score.bin == label)
        rest = ranked[_WORST:]
        middle = max(0, len(ranked) // 2 - _WORST - _TYPICAL // 2)
        chosen += [("typical", pairs[i]) for _, i in rest[middle : middle + _TYPICAL]]
        chosen += [("worst", pairs[i]) for _, i in ranked[:_WORST]]
    return chosen


def contact_sheet(cases: Sequence[tuple[str, Pair]], systems: Mapping[str, FillHole], size: int) -> Image.Image:
    """A row per case: the input with a white hole, the composite and PSNR of each system, and the target."""
    cell = max(size, 128)
    step, line = cell + _MARGIN, cell + _MARGIN + _CAPTION
    sheet = Image.new("RGB", (step * (len(systems) + 2) + _MARGIN, line * len(cases) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (kind, pair) in enumerate(cases):
        runs = {name: complete(fill, pair) for name, fill in systems.items()}
        target = next(iter(runs.values()))[0]
        shown = target.copy()
        shown[read_hole(pair.mask, pair.size)] = 255
        cells = [(f"{kind}, {printable(pair.image.stem)}, {pair.ratio:.0%} hole", shown)]
        cells += [(f"{name}: {psnr(run[1], target):.2f} dB", run[1]) for name, run in runs.items()]
        cells += [("target", target)]
        for column, (caption, image) in enumerate(cells):
            x, y = _MARGIN + column * step, _MARGIN + row * line
            draw.text((x, y), caption, fill="black")
            sheet.paste(Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST), (x, y + _CAPTION))
    return sheet
