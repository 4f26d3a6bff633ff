"""Tiny training runs that the tests share."""

import json
from pathlib import Path

import torch

from showface.training import TrainingConfig, load_config
from showface.training.checkpoint import load_checkpoint

from support.networks import TINY

SMALL = [
    *(f"model.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in TINY.to_dict().items()),
    "data.size=32",
    "data.workers=0",
    "batch=2",
    "warmup=2",
    "device=cpu",
]


def small(faces: Path, *overrides: str) -> TrainingConfig:
    return load_config(overrides=[*SMALL, f"data.folders=[{faces}]", *overrides])


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "checkpoints")["model"]
