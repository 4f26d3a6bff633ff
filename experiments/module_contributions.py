"""What each module contributes to a trained model: remove one at a time, without training again.

    python experiments/module_contributions.py faces/celebahq faces/ffhq --masks masks --model psnr

Prints a table in Markdown: the mean error in the hole, PSNR, and by how much the hole's error grows over that of the
whole network, with the standard error over the faces.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch

import showface
from showface.data import find_images
from showface.evaluation import evaluate, markdown_table, model_system, plan
from showface.models import MDRNets


def coarse_only(model: MDRNets) -> None:
    """The refinement, which reads all that the modules return, is left out."""
    model.register_forward_hook(lambda module, inputs, output: replace(output, image=output.coarse))


def without_mrem(model: MDRNets) -> None:
    """Corrupted tokens get nothing from known ones."""
    assert model.enhancement is not None
    torch.nn.init.zeros_(model.enhancement.value.weight)
    torch.nn.init.zeros_(model.enhancement.value.bias)


def without_dmm(model: MDRNets) -> None:
    """The memory recalls zeros."""
    assert model.memory is not None
    model.memory.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))


def slots_swapped(model: MDRNets) -> None:
    """Each region reads the slots of the next one. The regions' centres stay."""
    assert model.memory is not None
    model.memory.memory.copy_(model.memory.memory.roll(1, 0))


CHANGES: dict[str, Callable[[MDRNets], None]] = {
    "whole network": lambda model: None,
    "coarse image only": coarse_only,
    "without the MREM's output": without_mrem,
    "without the DMM's output": without_dmm,
    "with the DMM's slots swapped between regions": slots_swapped,
}


def variants(model: MDRNets) -> dict[str, MDRNets]:
    """The network with each of the changes, by its name."""
    changed = {}
    with torch.no_grad():
        for name, change in CHANGES.items():
            changed[name] = copy.deepcopy(model)
            change(changed[name])
    return changed


def table(model: MDRNets, folders: list[Path], masks: Path, limit: int | None) -> str:
    """The table, over the first `limit` faces of each folder, with one mask each that covers 1 to 60%."""
    size, pairs = model.config.image_size, []
    for folder in folders:
        pairs += plan(find_images(folder)[:limit], find_images(masks), size, [(0.01, 0.6)])
    scores = evaluate({name: model_system(network) for name, network in variants(model).items()}, pairs)
    by_name = {name: [score for score in scores if score.system == name] for name in CHANGES}
    whole = [score.hole_l1_percent for score in by_name["whole network"]]
    lines = []
    for name, own in by_name.items():
        more = [score.hole_l1_percent - first for score, first in zip(own, whole, strict=True)]
        error = stdev(more) / len(more) ** 0.5 if len(more) > 1 else 0.0
        cells = f"{fmean(s.hole_l1_percent for s in own):.3f}", f"{fmean(s.psnr for s in own):.2f}"
        lines.append([name, *cells, f"{fmean(more):+.3f} ± {error:.3f}"])
    return markdown_table(["", "hole L1 %", "PSNR dB", "more than the whole network"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("faces", nargs="+", type=Path, help="folders of aligned faces")
    parser.add_argument("--masks", type=Path, required=True, help="folder of masks, white = hole")
    parser.add_argument("--model", default="psnr", help="bundled name or folder of the model; default: psnr")
    parser.add_argument("--limit", type=int, help="use only the first LIMIT faces of each folder")
    options = parser.parse_args()
    model = showface.load_model(options.model)
    if not isinstance(model, MDRNets) or None in (model.memory, model.enhancement, model.refinement):
        parser.error(f"{options.model} is no MDRNets with all modules")
    print(table(model, options.faces, options.masks, options.limit), end="")


if __name__ == "__main__":
    main()
