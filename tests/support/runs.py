"""Tiny training runs that the tests share."""

import json
import socket
from pathlib import Path

import torch

from showface.training import TrainingConfig, load_config
from showface.training.checkpoint import load_checkpoint

from support.networks import TINY

SMALL = [
    *(
        f"model.{name}={list(value) if isinstance(value, tuple) else value}"
        for name, value in TINY.to_dict().items()
        if name != "image_size"
    ),
    "data.size=32",
    "data.workers=0",
    "batch=2",
    "warmup=2",
    "device=cpu",
]

LOSSES = {"hole", "known", "coarse_hole", "coarse_known", "total", "adversarial", "discriminator", "lr"}
ADVERSARIAL = ["loss.adversarial=0.1", "gan.channels=8", "gan.layers=2"]


def small(faces: Path, *overrides: str) -> TrainingConfig:
    return load_config(overrides=[*SMALL, f"data.folders=[{faces}]", *overrides])


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "checkpoints")["model"]


def assert_same_run(whole: Path, parts: Path) -> None:
    """All weights, EMA weights, moments, random states and logged losses are bit for bit the same."""
    a, b = (load_checkpoint(out / "checkpoints") for out in (whole, parts))
    compare(a, b, "")
    told = [
        [{k: v for k, v in entry.items() if k in LOSSES | {"step"}} for entry in entries(out)] for out in (whole, parts)
    ]
    assert told[0] == told[1]


def compare(a: object, b: object, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            compare(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            compare(x, y, f"{where}/{number}")
    else:
        assert a == b, where


def free_port() -> int:
    """A port of this machine that nothing listens on, for processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
