"""Training in stages: the schedule, the trainer, and resuming in and between stages."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import showface as package
from showface.baselines import BASELINES, ICT
from showface.models.stages import Stage, StageSchedule
from showface.training import Trainer, TrainingConfig
from showface.training.checkpoint import list_checkpoints, load_checkpoint
from showface.training.setup import lr_at

from support.runs import SMALL, compare, entries, free_port, small, weights

NAMES = ("dsi", "ict")


def staged(faces: Path, name: str, *overrides: str) -> TrainingConfig:
    return small(faces, f"system={name}", "baseline.channels=8", "save_every=1", "log_every=1", "keep=100", *overrides)


class TestSchedule:
    @pytest.mark.parametrize(
        ("shares", "steps", "ends"),
        [
            ((1, 1, 1), 9, [3, 6, 9]),
            ((0.02, 0.6, 0.38), 100, [2, 62, 100]),
            ((0.02, 0.6, 0.38), 6, [1, 4, 6]),
            ((1, 0.001, 0.001), 3, [1, 2, 3]),
            ((1, 1, 1), 2, [1, 2, 2]),
            ((1, 1, 1), 1, [1, 1, 1]),
            ((), 7, [7]),
        ],
    )
    def test_ends(self, shares, steps, ends):
        schedule = StageSchedule([Stage(str(i), share) for i, share in enumerate(shares)], steps)
        assert schedule.ends == ends
        borders = [step for step in range(steps + 1) if schedule.is_border(step)]
        assert borders == sorted(set(ends) - {steps})
        for step in range(steps):
            start, end = schedule.span(step)
            assert start <= step < end
        assert schedule.at(steps) == schedule.at(steps - 1)

    def test_one_stage_trains_everything(self):
        network = torch.nn.Linear(2, 2)
        assert StageSchedule((), 5).at(3).parameters(network) == list(network.parameters())

    def test_parameters_by_name(self):
        network = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("a", "ab", "b")})
        assert Stage("x", trains=("a", "b")).parameters(network) == [network["a"].weight, network["b"].weight]
        assert Stage("x", trains=()).parameters(network) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_step_trains_its_stage_only(faces, tmp_path, name):
    trainer = Trainer(staged(faces, name, "steps=3"), tmp_path / "run")
    changed = []
    for batch in trainer._batches():
        trained = set(trainer.stage.parameters(trainer.model))
        assert {x for x in trainer.model.parameters() if x.requires_grad} == trained
        before = {key: x.clone() for key, x in trainer.model.state_dict().items()}
        trainer.train_step([batch])
        parts = {key.split(".")[0] for key, x in trainer.model.state_dict().items() if not torch.equal(x, before[key])}
        changed.append(parts)
    expected = {"dsi": [{"vqvae"}, {"condition", "structure"}, {"texture"}]}
    assert changed == expected.get(name, [{"palette"}, {"transformer"}, {"upsampler"}])
    # The saved model has the weights that the later stages were trained with.
    frozen = [x for x in trainer.model.parameters() if not x.requires_grad]
    averaged = dict(zip(trainer.model.parameters(), trainer.ema.module.parameters(), strict=True))
    assert all(torch.equal(x, averaged[x]) for x in frozen)


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("dsi", (2,)),
        ("ict", (1, 3, 4)),
        pytest.param("dsi", range(1, 6), marks=pytest.mark.long),
        pytest.param("ict", range(1, 6), marks=pytest.mark.long),
    ],
)
def test_resuming_is_as_if_never_stopped(faces, tmp_path, name, stops):
    """Within a stage and at its border, which for DSI are after steps 2 and 4, and for ICT after steps 1 and 4."""
    config = staged(faces, name, "steps=6")
    Trainer(config, tmp_path / "whole").run()
    whole = load_checkpoint(tmp_path / "whole" / "checkpoints")
    log = entries(tmp_path / "whole")
    for step in stops:
        out = tmp_path / str(step)
        (out / "checkpoints").mkdir(parents=True)
        shutil.copy(list_checkpoints(tmp_path / "whole" / "checkpoints")[step - 1], out / "checkpoints")
        torch.rand(7)  # another process starts with another random state
        resumed = Trainer(config, out, resume=True)
        assert resumed.step == step
        resumed.run()
        compare(load_checkpoint(out / "checkpoints"), whole, "checkpoint")
        assert entries(out)[-1]["total"] == log[-1]["total"]


def test_losses_of_images_only_where_a_stage_paints(faces, tmp_path):
    out = tmp_path / "run"
    options = ["steps=4", "log_every=100", "loss.adversarial=0.1", "gan.channels=8"]
    trainer = Trainer(staged(faces, "ict", *options), out)
    before = {key: x.clone() for key, x in trainer.discriminator.state_dict().items()}
    trainer.run()
    log = entries(out)
    assert [entry["step"] for entry in log] == [1, 2, 4]  # each stage has an entry of its own
    losses = [set(entry) - {"step", "total", "lr", "images_per_second", "waiting", "memory_gib"} for entry in log]
    painted = {"hole", "known", "coarse_hole", "coarse_known", "adversarial", "discriminator"}
    assert losses == [{"palette"}, {"tokens"}, painted]
    assert any(not torch.equal(x, before[key]) for key, x in trainer.discriminator.state_dict().items())


def test_the_discriminator_is_alone_in_the_stage_that_paints(faces, tmp_path):
    options = ["steps=6", "loss.adversarial=0.1", "gan.channels=8", "gan.alone=1"]
    Trainer(staged(faces, "dsi", *options), tmp_path / "run").run()
    used = ["adversarial" in entry for entry in entries(tmp_path / "run")]
    assert used == [False, False, False, False, False, True]  # two steps for each of three stages


def test_the_learning_rate_starts_anew_in_each_stage(faces, tmp_path):
    trainer = Trainer(staged(faces, "dsi", "steps=30", "warmup=5", "lr=0.1"), tmp_path / "run")
    rates = [lr_at(trainer.config, trainer.schedule, step) for step in range(30)]
    assert rates[:10] == rates[10:20] == rates[20:]
    assert max(rates) == pytest.approx(0.1, rel=0.4)
    assert rates[9] < rates[5]


def test_the_palette_is_reproducible(faces, tmp_path):
    palettes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Trainer(staged(faces, "ict", "steps=3", f"seed={seed}"), tmp_path / name).run()
        network = package.load_model(tmp_path / name / "model")
        assert isinstance(network, ICT)
        palettes.append(network.palette.vectors)
    assert torch.equal(palettes[0], palettes[1])
    assert not torch.equal(palettes[0], palettes[2])
    assert palettes[0].abs().max() <= 1
    assert len(palettes[0].unique(dim=0)) > 10


def test_other_steps_and_other_systems_are_refused(faces, tmp_path):
    out = tmp_path / "run"
    Trainer(staged(faces, "ict", "steps=4"), out).run()
    message = r"in stage 'upsampler', and step 4 of 40 belongs to stage 'transformer'"
    with pytest.raises(ValueError, match=message):
        Trainer(staged(faces, "ict", "steps=40"), out, resume=True)
    with pytest.raises(ValueError, match="is of another system or configuration than this one of unet"):
        Trainer(staged(faces, "unet", "steps=40"), out, resume=True)


@pytest.mark.parametrize("name", NAMES)
def test_by_the_command(showface, faces, name):
    options = [*SMALL, f"system={name}", "baseline.channels=8", "steps=3"]
    code, _, err = showface("train", "--out", "run", "--data", faces, *options)
    assert (code, err) == (0, "")
    network = package.load_model("run/model")
    assert type(network) is BASELINES[name]
    assert not network.training
    code, _, err = showface("evaluate", "--images", faces, "--model", "run/model", "--out", "scores", "--size", 32)
    assert code == 0, err


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_compiled_steps_are_the_eager_ones(faces, tmp_path, monkeypatch, name):
    torch._dynamo.reset()
    compiled_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled_by(module, backend="aot_eager"))
    # Dropout draws other numbers when compiled.
    monkeypatch.setattr("showface.baselines.pixelcnn.DROPOUT", 0.0)
    for compiled in (False, True):
        Trainer(staged(faces, name, "steps=3", f"compile={compiled}"), tmp_path / str(compiled)).run()
    for eager, compiled in zip(entries(tmp_path / "False"), entries(tmp_path / "True"), strict=True):
        for loss in set(eager) - {"images_per_second", "waiting", "memory_gib"}:
            assert compiled[loss] == pytest.approx(eager[loss], rel=1e-3), loss


def run_one_of_two(rank: int, faces: Path, out: Path, name: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    trainer = Trainer(staged(faces, name, "steps=6", "batch=4"), out)
    trainer.run()
    if rank == 1:
        torch.save(trainer.model.state_dict(), out / "second.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("name", ["dsi", "ict"])
def test_two_processes_agree(faces, tmp_path, name):
    """Both have the same weights and codes after all stages."""
    out = tmp_path / "run"
    torch.multiprocessing.spawn(run_one_of_two, args=(faces, out, name, free_port()), nprocs=2)
    compare(torch.load(out / "second.pt"), load_checkpoint(out / "checkpoints")["model"], "checkpoint")
    assert [entry["step"] for entry in entries(out)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", NAMES)
def test_bf16(faces, tmp_path, name):
    Trainer(staged(faces, name, "steps=3", "precision=bf16", "loss.perceptual=0.1"), tmp_path / "run").run()
    assert {x.dtype for x in weights(tmp_path / "run").values()} == {torch.float32}
    assert "perceptual" in entries(tmp_path / "run")[-1]
