"""Train MDRNets, ablations and baselines on the same images in the same order, with the same holes and budget.

    python experiments/compare_training.py --data faces/train --out compare --images 200000 --size 64 --batch 16 \
        --faces faces/val --masks masks

Each system is trained in `out/runs/<system>`, and its finished model is in `out/models/<system>`. Run the command
again after an interruption: finished systems are skipped, and the interrupted one resumes. At the end, parameters, time
and speed are printed and written to `out/compare_training.json`, with the learning curves that `learning_curves.py`
draws. With `--faces`, all systems are then evaluated in
`out/evaluation`, together with Telea's and the Navier-Stokes method, and printed beside the poster's table.

Speeds are only comparable if nothing else ran on the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from showface import load_model
from showface.baselines import BASELINES
from showface.evaluation import CLASSICAL, classical_system, model_system, run_evaluation
from showface.files import write_text
from showface.training import Trainer, TrainingConfig, load_config
from showface.training.checkpoint import list_checkpoints

import poster_table

# Base widths with about as many multiplications as MDRNets' defaults, for images of 64 to 96 pixels.
EQUAL_COST = {"pconv": 52, "deepfillv2": 24, "ctsdg": 22, "pic": 28, "dsi": 24, "ict": 72, "unet": 80}
MDRNETS = {
    "mdrnets": [],
    "coarse-only": ["model.use_refinement=false"],
    "no-dmm": ["model.use_memory=false"],
    "no-mrem": ["model.use_enhancement=false"],
    "no-inco2": ["loss.coordination=0"],
}
SYSTEMS = [*MDRNETS, *BASELINES]
CURVE_IMAGES = 1600


@dataclass(frozen=True)
class Row:
    """The training of a system.

    Attributes:
        channels: a baseline's base width.
        seconds: without loading models.
        curve: images seen and the mean L1 % in the holes of the last of them, for each CURVE_IMAGES images.
    """

    system: str
    channels: int | None
    parameters: int
    images: int
    seconds: float
    images_per_second: float
    curve: list[tuple[int, float]]


def configure(name: str, arguments: argparse.Namespace) -> TrainingConfig:
    """The configuration of a system. `--set` overrides everything except the settings that define the system."""
    folders = json.dumps([str(folder) for folder in arguments.data])
    overrides = [
        f"data.folders={folders}",
        f"data.size={arguments.size}",
        f"batch={arguments.batch}",
        f"seed={arguments.seed}",
        "data.workers=0",
    ]
    if name in BASELINES and arguments.widths == "equal":
        overrides.append(f"baseline.channels={EQUAL_COST[name]}")
    overrides += [*arguments.set, *(MDRNETS.get(name) or [f"system={name}"])]
    images = load_config(None, overrides).step_images
    return load_config(None, [f"steps={arguments.images // images}", *overrides])


def train(config: TrainingConfig, run: Path, model: Path) -> None:
    """Train or resume, and copy the finished model."""
    resume = bool(list_checkpoints(run / "checkpoints"))
    finished = Trainer(config, run, resume=resume).run()
    model.parent.mkdir(parents=True, exist_ok=True)
    partial = model.with_name(f".{model.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(finished, partial)
    partial.rename(model)


def read_log(file: Path, step_images: int) -> tuple[float, list[tuple[int, float]]]:
    """Seconds and learning curve of a finished run. Steps repeated after an interruption count once."""
    entries = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        entries[entry["step"]] = entry
    seconds, before = 0.0, 0
    holes: list[float] = []
    curve: list[tuple[int, float]] = []
    for step, entry in sorted(entries.items()):
        seconds += (step - before) * step_images / entry["images_per_second"]
        before = step
        if "hole" in entry:  # the first stages of a system that is trained in stages fill no holes
            holes.append(entry["hole"] * 50)  # colours lie in [-1, 1]
        if step * step_images % CURVE_IMAGES == 0 and holes:
            curve.append((step * step_images, round(fmean(holes), 4)))
            holes = []
    return seconds, curve


def summarise(name: str, config: TrainingConfig, run: Path, model: Path) -> Row:
    """The row of a finished run."""
    seconds, curve = read_log(run / "log.jsonl", config.step_images)
    network = load_model(model)
    images = config.steps * config.step_images
    return Row(
        system=name,
        channels=None if name in MDRNETS else network.config.channels,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        images=images,
        seconds=round(seconds, 3),
        images_per_second=round(images / seconds, 2),
        curve=curve,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, action="append", required=True, help="folder of training images (repeatable)")
    add("--out", type=Path, required=True, help="output folder for runs, models and the table")
    add("--images", type=int, required=True, help="number of training images per system, counting repetitions")
    add("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="NAME", help=f"any of {', '.join(SYSTEMS)}")
    add("--size", type=int, default=64, help="side of the images in pixels (default 64)")
    add("--batch", type=int, default=16, help="images per step (default 16)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
    add("--seed", type=int, default=0, help="seed of weights, order and holes (default 0)")
    add("--widths", choices=("equal", "paper"), default="equal", help="baselines at MDRNets' cost, or as in papers")
    add("--faces", type=Path, nargs="+", default=[], help="folders of faces to evaluate on; not used for training")
    add("--masks", type=Path, help="folder of evaluation masks, white = hole (default: generate them)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of `showface train` for all systems")
    arguments = parser.parse_args()
    if arguments.images < arguments.batch:
        parser.error(f"--images must be at least one batch of {arguments.batch}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    console = Console(soft_wrap=True)
    rows, models = [], []
    for name in arguments.systems:
        run, model = arguments.out / "runs" / name, arguments.out / "models" / name
        config = configure(name, arguments)
        if (run / "config.yaml").is_file() and load_config(run / "config.yaml") != config:
            raise SystemExit(f"{run} was trained with other settings: choose another --out, or delete it and {model}")
        if model.is_dir():
            console.print(f"{name}: trained already")
        else:
            console.print(f"{name}: {config.steps} steps of {config.step_images} images")
            train(config, run, model)
        rows.append(summarise(name, config, run, model))
        models.append(model)
        write_text(arguments.out / "compare_training.json", json.dumps([asdict(row) for row in rows], indent=2) + "\n")

    table = Table("system", "channels", "parameters", "images", "seconds", "images/s")
    for row in rows:
        channels = "" if row.channels is None else str(row.channels)
        speed = f"{row.images_per_second:.2f}"
        table.add_row(row.system, channels, f"{row.parameters:,}", f"{row.images:,}", f"{row.seconds:.1f}", speed)
    Console(width=None if console.is_terminal else 120).print(table)
    if arguments.faces:
        systems = {name: classical_system(name) for name in CLASSICAL} | {x.name: model_system(x) for x in models}
        out = arguments.out / "evaluation"
        run_evaluation(systems, arguments.faces, out, arguments.masks, size=arguments.size, overwrite=True)
        print(poster_table.report([out / "results.json"]), end="")


if __name__ == "__main__":
    main()
