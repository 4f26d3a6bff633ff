"""The settings of a resumed run: those that it was started with, and what a change of one of them does."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from showface.files import remove_temporaries, write_text
from showface.models.find import CONFIG_FILE, WEIGHTS_FILE
from showface.training.checkpoint import list_checkpoints
from showface.training.config import TrainingConfig, config_text, load_config
from showface.training.logger import LOG_FILE

RUN_CONFIG_FILE = "config.yaml"
_NOTE = "# after step "  # the start of a recorded change in config.yaml

_IMAGES = "the images come from there; if their number differs, so does their order"
_SAMPLES = "crops, colours or holes are drawn in another way from here on"
_RATE = "another learning rate from here on"
_BITS = "the results from here on can differ in rounding"
_NOTHING = "no effect on the result"
_EFFECTS = {
    "data.folders": _IMAGES,
    "data.shards": _IMAGES,
    "data.validation": "other scores from here on; the best model so far no longer counts",
    "data.min_side": "other images from here on, in another order",
    "data.size": "images of another size from here on; the weights stay",
    "data.crop": _SAMPLES,
    "data.colour": _SAMPLES,
    "data.ratio": _SAMPLES,
    "data.kind": _SAMPLES,
    "data.components": _SAMPLES,
    "data.workers": _NOTHING,
    "seed": "another order of the images, other crops and other holes from here on; the weights stay",
    "model.image_size": "no effect: data.size takes its place",
    "init": "no effect: the weights are those of the checkpoint",
    "lr": _RATE,
    "warmup": _RATE,
    "precision": _BITS,
    "compile": _BITS,
    "device": _BITS,
    "log_every": _NOTHING,
    "sample_every": _NOTHING,
    "save_every": _NOTHING,
    "keep": _NOTHING,
}


class Change(NamedTuple):
    """A setting that differs between a run and its continuation."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} from {_text(self.before)} to {_text(self.now)}"


def resumed_config(out: str | Path, file: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The settings of the run in a folder, then those of a YAML file, then overrides such as `data.size=128`.

    Settings that neither the file nor the overrides name stay as they were. If `config.yaml` is missing or empty, the
    file must be given, and the settings that it lacks have their defaults.

    Raises:
        FileNotFoundError: the folder has no checkpoint, or neither the folder nor the caller has settings.
        ValueError: as `load_config`.
    """
    out = Path(out)
    if not list_checkpoints(out / "checkpoints"):
        raise FileNotFoundError(f"nothing to resume: no checkpoint in {out / 'checkpoints'}")
    stored = out / RUN_CONFIG_FILE
    if stored.is_file() and stored.read_text(errors="replace").strip():
        return load_config([stored] if file is None else [stored, file], overrides)
    state = "is empty" if stored.is_file() else "is missing"
    if file is None:
        raise FileNotFoundError(f"{stored} {state}: give the settings of the run with --config")
    warnings.warn(f"{stored} {state}: the settings are the defaults and those of {file}", stacklevel=2)
    return load_config(file, overrides)


def find_changes(out: Path, config: TrainingConfig) -> list[Change]:
    """The settings that differ from those in the folder's `config.yaml`; none if it can't be read."""
    try:
        stored = load_config(out / RUN_CONFIG_FILE)
    except (OSError, ValueError):
        return []
    before, now = _flat(asdict(stored)), _flat(asdict(config))
    return [Change(name, before[name], value) for name, value in now.items() if before[name] != value]


def explain(changes: Sequence[Change], step: int, config: TrainingConfig) -> list[str]:
    """A line for each change: the setting and what the change does.

    Args:
        step: the step after which the run goes on.
        config: the settings from there on.
    """
    old = {change.name: change.before for change in changes}
    now = config.step_images
    before = old.get("batch", config.batch) * old.get("accumulate", config.accumulate)
    lines = []
    for change in changes:
        if change.name in ("batch", "accumulate"):
            effect = f"{now} images per step, not {before}"
            if now != before:
                place = f"image {step * now:,} of the shuffled stream, not {step * before:,}"
                what = "come again" if now < before else "are left out"
                effect += f"; the run goes on at {place}, so the images between them {what}"
        elif change.name == "steps":
            effect = f"the learning rate falls to 0 at step {change.now}, not {change.before}"
        else:
            effect = _EFFECTS.get(change.name, "used from here on")
        lines.append(f"changed after step {step}: {change} ({effect})")
    return lines


def write_config(out: Path, config: TrainingConfig, changes: Sequence[Change], step: int) -> None:
    """Write `config.yaml` atomically: the settings, after a comment for each change that the run has had."""
    path = out / RUN_CONFIG_FILE
    old = path.read_text(errors="replace").splitlines() if step and path.is_file() else []
    notes = [line for line in old if line.startswith(_NOTE)]
    notes += [f"{_NOTE}{step}: {change}" for change in changes]
    write_text(path, "".join(f"{note}\n" for note in notes) + config_text(config))


def remove_leftovers(out: Path) -> None:
    """Delete the temporary files of a trainer that was killed while it wrote. Needs the lock on the folder."""
    models = [f"{model}/{file}" for model in ("model", "best") for file in (WEIGHTS_FILE, CONFIG_FILE)]
    for name in (RUN_CONFIG_FILE, LOG_FILE, "checkpoints/step-*.pt", *models):
        path = out / name
        remove_temporaries(path.parent, path.name)
    for model in ("model", "best"):
        for left in (out / model).glob(".tmp??????"):  # safetensors' own
            left.unlink(missing_ok=True)


def _flat(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{section}{name}.")
        else:
            flat[section + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _text(value: Any) -> str:
    return ascii(value) if isinstance(value, str | list) else str(value)
