"""Scores of a training run on images that were put aside, and the model that has the best one."""

import math
from pathlib import Path

import pytest
import torch

from showface import MDRNets
from showface.training import DataConfig, Trainer
from showface.training.validation import Validation

from support.pictures import save_faces
from support.runs import SMALL, assert_same_run, compare, entries, small, weights

SCORES = ("validation_hole", "validation_psnr")


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return save_faces(tmp_path / "held-out", 11)


def scores(out: Path) -> dict[int, float]:
    return {entry["step"]: entry[SCORES[0]] for entry in entries(out) if SCORES[0] in entry}


def test_scores_are_means_over_the_images(held_out, model):
    """Also of the last batch, which is smaller; the same at each call, and no random number of the run is drawn."""
    validation = Validation(DataConfig(validation=[str(held_out)], size=32, crop=(0.3, 0.5), colour=0.5))
    before = torch.get_rng_state()
    found = validation(model, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert validation(model, torch.device("cpu")) == found
    losses, ratios = [], []
    with torch.no_grad():
        for index in range(11):
            sample = validation.faces[index]
            image, hole = sample["image"].double(), sample["hole"].bool()
            result = model(sample["image"][None], sample["hole"][None]).image[0].double()
            losses.append((result - image)[hole.expand_as(image)].abs().mean().item())
            error = (torch.where(hole, result, image) - image).square().mean().item()
            ratios.append(20 * math.log10(2) - 10 * math.log10(error))
    assert list(found) == list(SCORES)
    assert found[SCORES[0]] == pytest.approx(sum(losses) / 11, rel=1e-4)
    assert found[SCORES[1]] == pytest.approx(sum(ratios) / 11, rel=1e-4)


def test_the_best_model_is_kept(faces, held_out, tmp_path, monkeypatch):
    """That of the lowest score, which here is neither the first nor the last."""
    given = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(Validation, "__call__", lambda *_: {SCORES[0]: next(given), SCORES[1]: 20.0})
    out = tmp_path / "run"
    options = (f"data.validation=[{held_out}]", "steps=3", "save_every=1", "log_every=2", "keep=3")
    Trainer(small(faces, *options), out).run()
    assert scores(out) == {1: 0.5, 2: 0.3, 3: 0.4}
    saved = torch.load(out / "checkpoints" / "step-00000002.pt")["ema"]
    best, last = (MDRNets.from_pretrained(out / name).state_dict() for name in ("best", "model"))
    assert all(torch.equal(x, saved[f"module.{name}"]) for name, x in best.items())
    assert not all(torch.equal(x, last[name]) for name, x in best.items())


def test_a_resumed_run_is_the_same(faces, held_out, tmp_path):
    """It remembers the best score, and scores change nothing else."""
    options = (f"data.validation=[{held_out}]", "steps=4", "save_every=1", "log_every=1")
    Trainer(small(faces, *options), tmp_path / "whole").run()
    Trainer(small(faces, "steps=4", "save_every=1", "log_every=1"), tmp_path / "without").run()
    parts = Trainer(small(faces, *options), tmp_path / "parts")
    parts.config.steps = 2
    parts.run()
    Trainer(small(faces, *options), tmp_path / "parts", resume=True).run()
    assert scores(tmp_path / "parts") == scores(tmp_path / "whole")
    assert len(scores(tmp_path / "whole")) == 4
    best = [MDRNets.from_pretrained(tmp_path / name / "best").state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(x, best[1][name]) for name, x in best[0].items())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    compare(weights(tmp_path / "whole"), weights(tmp_path / "without"), "")


def test_other_images_start_anew(faces, held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "__call__", lambda *_: {SCORES[0]: 0.5, SCORES[1]: 20.0})
    Trainer(small(faces, f"data.validation=[{held_out}]", "steps=1"), tmp_path / "run").run()
    for folder, size, best in ((held_out, 32, 0.5), (faces, 32, math.inf), (held_out, 48, math.inf)):
        options = (f"data.validation=[{folder}]", f"data.size={size}", "steps=2")
        again = Trainer(small(faces, *options), tmp_path / "run", resume=True)
        assert again._best == best
        again._lock = None


def test_by_the_command(showface, faces, held_out):
    code, out, err = showface("train", "--data", faces, "--validation", held_out, "--out", "run", *SMALL, "steps=2")
    assert (code, err) == (0, "")
    assert f"best model on the validation images: {Path('run/best').resolve()}" in out
    assert "validation 0." in out
    code, _, err = showface("train", "--data", faces, "--validation", "nowhere", "--out", "other", *SMALL)
    assert code == 1
    assert "nowhere" in err
    assert not Path("other").exists()
