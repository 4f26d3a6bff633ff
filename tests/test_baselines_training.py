"""Training the baselines, and the comparison script."""

import argparse
import importlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import showface as package
from showface.baselines import BASELINES, BaselineConfig
from showface.training import Trainer

from support.runs import SMALL, entries, small, weights

WIDTH = 8


def test_by_the_command(showface, faces):
    options = [*SMALL, "system=unet", f"baseline.channels={WIDTH}"]
    code, out, err = showface("train", "--out", "run", "--data", faces, *options, "steps=2")
    assert (code, err) == (0, "")
    loaded = package.load_model("run/model")
    assert (loaded.system, loaded.config) == ("unet", BaselineConfig(WIDTH, 32))
    again = ("train", "--out", "run", "--config", "run/config.yaml", "--resume")
    code, out, _ = showface(*again, "steps=3")
    assert code == 0
    assert "resumed after step 2" in out
    assert [entry["step"] for entry in entries(Path("run"))] == [2, 3]
    code, _, err = showface(*again, "steps=4", "system=pconv")
    assert code == 1
    assert "is of another system or configuration than this one of pconv" in err
    assert_paints(showface, faces, "run/model")
    code, _, err = showface("memory", faces, "--model", "run/model", "-o", "memory.png")
    assert (code, err) == (1, "error: run/model is a unet model: only MDRNets have a memory\n")


@pytest.mark.parametrize("name", ["pconv", "pic"])
def test_resuming_is_as_if_never_stopped(faces, tmp_path, name):
    """For a network with batch norm, and for one that draws samples."""
    config = small(faces, "steps=4", f"system={name}", f"baseline.channels={WIDTH}")
    Trainer(config, tmp_path / "whole").run()
    stopped = Trainer(config, tmp_path / "parts")
    for batch in stopped._batches():
        stopped.train_step([batch])
        if stopped.step == 2:
            break
    stopped.save()
    torch.rand(7)  # another process starts with another random state
    Trainer(config, tmp_path / "parts", resume=True).run()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(x, parts[key]) for key, x in whole.items())


def test_all_systems_see_the_same_batches(faces, tmp_path):
    trainers = [
        Trainer(small(faces, "steps=2", f"system={name}", f"baseline.channels={WIDTH}"), tmp_path / name)
        for name in ("mdrnets", "unet", "pic")
    ]
    for batches in zip(*(trainer._batches() for trainer in trainers), strict=True):
        for batch in batches[1:]:
            assert all(torch.equal(x, batches[0][key]) for key, x in batch.items())


@pytest.mark.parametrize("name", BASELINES)
def test_bf16(faces, tmp_path, name):
    config = small(faces, "steps=1", "precision=bf16", f"system={name}", f"baseline.channels={WIDTH}")
    Trainer(config, tmp_path / "run").run()
    assert {x.dtype for x in weights(tmp_path / "run").values()} <= {torch.float32, torch.int64}


def test_comparing_trained_systems(faces, tmp_path, monkeypatch, capsys):
    """The script trains the named systems, skips finished ones, and compares them on other faces."""
    pytest.importorskip("cv2")
    script, out = Path(__file__).parent.parent / "experiments" / "compare_training.py", tmp_path / "out"
    monkeypatch.syspath_prepend(script.parent)
    command = [script, "--data", faces, "--out", out, "--images", 4, "--size", 32, "--batch", 2]
    command += ["--threads", torch.get_num_threads(), "--systems", "unet", "mdrnets", "no-dmm"]
    command += ["--set", f"baseline.channels={WIDTH}", *(x for x in SMALL if x.startswith("model."))]

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(x) for x in (*command, *more)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    assert "trained already" not in run()
    shutil.rmtree(out / "models" / "no-dmm")  # as if stopped before it was copied
    assert run().count("trained already") == 2
    told = run("--faces", str(faces))
    assert told.count("trained already") == 3
    for line in ("| telea |", "| **mdrnets** |", "who wins", "| MDRNets less |", "| no-dmm |"):
        assert line in told
    rows = json.loads((out / "compare_training.json").read_text())
    assert [(row["system"], row["channels"]) for row in rows] == [("unet", WIDTH), ("mdrnets", None), ("no-dmm", None)]
    assert all(row["images"] == 4 and row["parameters"] > 0 and row["seconds"] > 0 for row in rows)
    assert package.load_model(out / "models" / "no-dmm").config.use_memory is False
    with pytest.raises(SystemExit, match="was trained with other settings"):
        run("lr=1e-4")


def test_the_learning_curve_counts_repeated_steps_once_and_stages_without_holes_not(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "experiments")
    log = tmp_path / "log.jsonl"
    entries = [(40, None), (80, 0.9), (80, 0.5), (100, 0.3), (200, 0.2)]  # step 80 twice: interrupted and resumed
    holes = [{} if hole is None else {"hole": hole} for _, hole in entries]
    lines = [{"step": step, "images_per_second": 8} | hole for (step, _), hole in zip(entries, holes, strict=True)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds, curve = importlib.import_module("compare_training").read_log(log, 16)
    assert seconds == 200 * 16 / 8
    assert curve == [(1600, 20.0), (3200, 10.0)]


@pytest.mark.parametrize("setting", ["accumulate=2", "batch=4"])
def test_compared_systems_see_as_many_images_whatever_is_set(monkeypatch, setting):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "experiments")
    configure = importlib.import_module("compare_training").configure
    options = {"data": ["faces"], "images": 40, "size": 32, "batch": 2, "seed": 0, "widths": "equal", "set": [setting]}
    config = configure("unet", argparse.Namespace(**options))
    assert (config.steps, config.step_images) == (10, 4)


def assert_paints(showface, faces: Path, model: str) -> None:
    face = next(faces.iterdir())
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save("mask.png")
    assert showface("inpaint", face, "mask.png", "-o", "result.png", "--model", model)[0] == 0
    assert showface("demo", "--model", model, "-o", "demo.png")[0] == 0
