"""Training on small pictures: configuration, the loop, checkpoints, resuming."""

import json
import math

import pytest
import torch
from PIL import Image

from showface import MDRNets
from showface.data import write_shards
from showface.losses import LossWeights
from showface.training import Trainer, TrainingConfig, load_config
from showface.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from showface.training.setup import lr_at

from support.networks import TINY
from support.pictures import save_faces
from support.runs import SMALL, entries, small, weights


class TestConfig:
    def test_defaults(self):
        assert load_config() == TrainingConfig()

    def test_overrides(self):
        config = load_config(overrides=["data.size=64", "batch=3", "model.use_memory=false", "loss.coordination=0"])
        assert (config.data.size, config.batch, config.model.use_memory) == (64, 3, False)
        assert config.loss.coordination == 0

    def test_file_and_overrides(self, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text("batch: 5\nsteps: 7\nmodel:\n  channels: 16\n  refinement_blocks: [1, 2, 3]\n")
        config = load_config(file, ["batch=6"])
        assert (config.batch, config.steps, config.model.channels) == (6, 7, 16)
        assert config.model.refinement_blocks == (1, 2, 3)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("data.sise=64", "sise"),
            ("bach=3", "bach"),
            ("model.depth=3", "depth"),
            ("batch=many", "batch: Value 'many'"),
            ("data.size=large", r"data\.size: Value 'large'"),
            ("batch=0", "batch must be at least 1, got 0"),
            ("steps=-1", "steps must be at least 1"),
            ("keep=0", "keep must be at least 1"),
            ("data.size=40", "data.size must be a multiple of 16, got 40"),
            ("precision=fp8", "precision must be 'fp32' or 'bf16', got 'fp8'"),
            ("optimiser=sgd", "optimiser must be 'adamw' or 'muon', got 'sgd'"),
            ("lr=0", "lr must be positive"),
            ("model.channels=0", "channels must be a positive integer"),
            ("model.memory_rate=2", "memory_rate must lie in"),
            ("clip=-1", r"clip must be positive .*, got -1\.0"),
            ("clip=nan", "clip must be positive .*, got nan"),
            ("ema_decay=2", r"ema_decay must be at least 0 and below 1, got 2\.0"),
            ("ema_decay=1", r"ema_decay must be at least 0 and below 1, got 1\.0"),
            ("loss.hole=-1", r"loss\.hole must be at least 0 and finite, got -1\.0"),
            ("loss.style=inf", r"loss\.style must be at least 0 and finite, got inf"),
            (
                "loss={hole: 0, known: 0, parsing: 0, coordination: 0}",
                "loss must have a weight above 0, got 0 for every",
            ),
            ("loss.feature_matching=1", r"loss\.feature_matching needs a loss\.adversarial above 0, got 1\.0"),
            ("data.size=nan", r"data\.size: Value 'nan'"),
            ("lr=nan", "lr must be positive and finite, got nan"),
            ("lr=inf", "lr must be positive and finite, got inf"),
            ("weight_decay=-1", "weight_decay must be at least 0"),
            ("warmup=-1", "warmup must be at least 0, got -1"),
            ("seed=-1", "seed must be from 0 to"),
            ("seed=18446744073709551616", "seed must be from 0 to"),
            ("gan.start=-1", r"gan\.start must be at least 0, got -1"),
            ("gan.alone=-1", r"gan\.alone must be at least 0, got -1"),
            ("zoom=1.5", r"zoom must be in \[0, 1\], got 1.5"),
            ("zoom=0.5", r"zoom needs a loss of features, loss\.texture or loss\.adversarial, got 0\.5"),
            ("gan.r1=-1", r"gan\.r1 must be at least 0 and finite, got -1"),
            ("gan.scales=0", r"gan\.scales must be at least 1, got 0"),
            ("data.components=2", r"data\.components must be in \[0, 1\], got 2"),
            ("gan.layers=0", r"gan\.layers must be at least 1, got 0"),
            ("data.workers=-1", r"data\.workers must be at least 0, got -1"),
            ("data.min_side=-1", r"data\.min_side must be at least 0"),
            ("data.crop=[0,1]", r"data\.crop must be two numbers 0 < low <= high <= 1, got \(0\.0, 1\.0\)"),
            ("data.ratio=[0.5,0.4]", r"data\.ratio must be two numbers"),
            ("data.ratio=[0,0]", r"data\.ratio must be two numbers, the second above 0, got \(0\.0, 0\.0\)"),
            ("data.colour=1", r"data\.colour must be at least 0 and below 1, got 1\.0"),
            ("data.kind=dots", r"data\.kind must be one of strokes, blocks, both, got 'dots'"),
            ("data.shards=a.tar", r"data\.shards: must be a list, such as data\.shards=\[a\.tar\], got 'a\.tar'"),
            ("data.crop=0.5", r"data\.crop: must be a list, such as data\.crop=\[0\.5,1\], got 0\.5"),
            ("data.crop=[0.5", r"data\.crop=\[0\.5 is not YAML"),
            ("model.refinement_blocks=[-1,1,1]", r"refinement_blocks must be three numbers from 0 upwards"),
        ],
    )
    def test_bad_overrides_are_named(self, override, message):
        with pytest.raises(ValueError, match=message):
            load_config(overrides=[override])

    def test_an_adversarial_loss_that_no_step_would_use(self):
        overrides = ["loss.adversarial=1", "gan.start=50000", "gan.alone=150"]
        message = r"gan\.start \+ gan\.alone must be below steps \(20000\), got 50150: the adversarial loss would never"
        with pytest.raises(ValueError, match=message):
            load_config(overrides=[*overrides, "steps=20000"])
        load_config(overrides=[*overrides, "steps=50151"])

    @pytest.mark.parametrize(
        ("overrides", "smallest"),
        [
            (["data.size=16", "loss.distribution=1"], 32),
            (["data.size=16", "loss.adversarial=1", "gan.on_features=true"], 32),
            (["data.size=16", "loss.adversarial=1"], 32),
            (["data.size=48", "loss.adversarial=1", "gan.scales=2"], 64),
        ],
    )
    def test_images_too_small_for_a_loss(self, overrides, smallest):
        with pytest.raises(ValueError, match=rf"data\.size must be at least {smallest} for these losses"):
            load_config(overrides=overrides)
        load_config(overrides=[*overrides, f"data.size={smallest}"])

    def test_settings_of_a_script_are_checked_too(self, faces, tmp_path):
        with pytest.raises(ValueError, match=r"clip must be positive .*, got -1"):
            TrainingConfig(clip=-1)
        config = small(faces)
        config.clip = -1
        with pytest.raises(ValueError, match=r"clip must be positive .*, got -1"):
            Trainer(config, tmp_path / "run")
        assert load_config(overrides=["clip=inf"]).clip == math.inf

    def test_missing_and_broken_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
            load_config(tmp_path / "nowhere.yaml")
        (tmp_path / "run.yaml").write_text("batch: [")
        with pytest.raises(ValueError, match=r"bad training configuration: .*run\.yaml is not YAML"):
            load_config(tmp_path / "run.yaml")

    def test_written_configuration_gives_the_same_run(self, faces, tmp_path):
        config = small(faces, "steps=1")
        Trainer(config, tmp_path / "run")
        assert load_config(tmp_path / "run" / "config.yaml") == config


class TestCheckpoints:
    def test_named_pruned_and_newest_first(self, tmp_path):
        for step in (1, 20, 300):
            save_checkpoint(tmp_path, step, {"step": step}, keep=2)
        (tmp_path / "step-9.pt.tmp").touch()
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000020.pt", "step-00000300.pt"]
        assert load_checkpoint(tmp_path) == {"step": 300}

    def test_nothing_to_resume(self, faces, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing to resume: no checkpoint in"):
            Trainer(small(faces), tmp_path / "run", resume=True)


class TestTrainer:
    def test_a_run_leaves_all_its_files(self, faces, tmp_path):
        out = tmp_path / "run"
        folder = Trainer(small(faces, "steps=5", "save_every=2", "log_every=2", "sample_every=4"), out).run()
        assert folder == out / "model"
        assert sorted(path.name for path in out.iterdir()) == sorted(
            ["checkpoints", "config.yaml", "events", "log.jsonl", "model"]
        )
        assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step-00000004.pt", "step-00000005.pt"]
        assert any((out / "events").iterdir())
        log = entries(out)
        assert [entry["step"] for entry in log] == [2, 4, 5]
        for entry in log:
            assert {"hole", "known", "coarse_hole", "coarse_known", "parsing", "coordination", "total", "lr"} <= set(
                entry
            )
            assert all(math.isfinite(value) for value in entry.values())
            weights = {name: weight for name, weight in LossWeights().by_name().items() if weight}
            total = sum(weight * entry[name] for name, weight in weights.items())
            assert entry["total"] == pytest.approx(total, rel=1e-5)
        model = MDRNets.from_pretrained(folder)
        assert model.config == TINY

    @pytest.mark.parametrize("named", [[], ["model.image_size=64"]])
    def test_the_model_knows_the_size_of_its_images(self, faces, tmp_path, named):
        folder = Trainer(small(faces, "steps=1", "data.size=48", *named), tmp_path / "run").run()
        assert json.loads((folder / "config.json").read_text())["image_size"] == 48

    def test_the_average_of_the_weights_does_not_wait_for_the_device(self, faces, tmp_path):
        trainer = Trainer(small(faces), tmp_path / "run")
        averaged = torch.zeros(2)
        trainer._update_ema([averaged], [torch.ones(2)], torch.empty((), device="meta"))  # can't be read
        torch.testing.assert_close(averaged, torch.full((2,), 0.9))

    def test_the_learning_rate_of_each_step_is_logged(self, faces, tmp_path):
        Trainer(small(faces, "steps=4", "log_every=1", "lr=1e-3", "warmup=2"), tmp_path / "run").run()
        cosine = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
        expected = [1e-3 * warm * fall for warm, fall in zip((0.5, 1, 1, 1), cosine, strict=True)]
        assert [entry["lr"] for entry in entries(tmp_path / "run")] == pytest.approx(expected)

    def test_loss_falls_on_one_picture(self, tmp_path):
        faces = save_faces(tmp_path / "one", count=1)
        same = ["data.crop=[1.0,1.0]", "data.colour=0", "data.ratio=[0.3,0.3]"]
        Trainer(small(faces, "steps=30", "log_every=5", "lr=3e-3", "batch=4", *same), tmp_path / "run").run()
        losses = [entry["total"] for entry in entries(tmp_path / "run")]
        assert losses[-1] < 0.85 * losses[0]

    @pytest.mark.parametrize("switch", ["use_memory", "use_enhancement", "use_refinement"])
    def test_parts_can_be_left_out(self, faces, tmp_path, switch):
        folder = Trainer(small(faces, "steps=2", f"model.{switch}=false"), tmp_path / "run").run()
        assert not getattr(MDRNets.from_pretrained(folder).config, switch)

    def test_bf16(self, faces, tmp_path):
        Trainer(small(faces, "steps=2", "precision=bf16"), tmp_path / "run").run()
        state = weights(tmp_path / "run")
        assert {x.dtype for x in state.values()} == {torch.float32, torch.int32}

    def test_labels_are_learnt_from(self, faces, tmp_path):
        labels = faces.with_name("faces_parsing")
        labels.mkdir()
        for path in faces.iterdir():
            Image.new("L", (40, 40), 3).save(labels / path.name)
        trainer = Trainer(small(faces, "steps=2", "log_every=1"), tmp_path / "run")
        assert trainer.dataset.labelled == 3
        trainer.run()
        assert entries(tmp_path / "run")[0]["parsing"] > 0
        # The whole picture is region 3, so only the block of region 3 is written.
        assert (trainer.model.memory.idle[3] == 0).any()
        assert (trainer.model.memory.idle[:3] > 0).all()

    def test_labels_need_all_regions(self, faces, tmp_path):
        Trainer(small(faces, "model.regions=5"), tmp_path / "without labels")
        labels = faces.with_name("faces_parsing")
        labels.mkdir()
        for path in faces.iterdir():
            Image.new("L", (40, 40), 3).save(labels / path.name)
        with pytest.raises(ValueError, match=r"images with labels need model\.regions=19, got 5"):
            Trainer(small(faces, "model.regions=5"), tmp_path / "run")

    @pytest.mark.parametrize("optimiser", ["adamw", "muon"])
    def test_resuming_is_as_if_never_stopped(self, faces, tmp_path, monkeypatch, optimiser):
        # With so many slots every step replaces an idle one, so it depends on the initial random numbers.
        config = small(faces, "steps=8", "save_every=4", "log_every=1", "model.slots=16", f"optimiser={optimiser}")
        Trainer(config, tmp_path / "whole").run()

        stopped = Trainer(config, tmp_path / "stopped")
        step = stopped.train_step

        def stop_at_six(batch):
            if stopped.step == 6:
                raise KeyboardInterrupt
            return step(batch)

        monkeypatch.setattr(stopped, "train_step", stop_at_six)
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
        torch.rand(7)  # another process starts with another random state
        resumed = Trainer(config, tmp_path / "stopped", resume=True)
        assert resumed.step == 4
        resumed.run()

        whole, parts = (load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "stopped"))
        assert whole["step"] == parts["step"] == 8
        for kind in ("model", "ema"):
            for name, value in whole[kind].items():
                assert torch.equal(value, parts[kind][name]), name
        for out in ("whole", "stopped"):
            assert entries(tmp_path / out)[-1]["total"] == entries(tmp_path / "whole")[-1]["total"]
        models = [MDRNets.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "stopped")]
        for name, value in models[0].items():
            assert torch.equal(value, models[1][name]), name

    def test_the_same_seed_gives_the_same_run(self, faces, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            Trainer(small(faces, "steps=2", f"seed={seed}"), tmp_path / name).run()
        a, b, c = (weights(tmp_path / name)["coarse.up8.weight"] for name in "abc")
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_shards_train_as_their_folder_does(self, faces, tmp_path):
        write_shards(faces, tmp_path / "shards", count_per_shard=2)
        Trainer(small(faces, "steps=3"), tmp_path / "folder").run()
        shards = ["data.folders=[]", f"data.shards=['{tmp_path}/shards/*.tar']", "steps=3"]
        Trainer(small(faces, *shards), tmp_path / "tars").run()
        for name, x in weights(tmp_path / "folder").items():
            assert torch.equal(weights(tmp_path / "tars")[name], x), name

    def test_refuses_to_overwrite_a_run(self, faces, tmp_path):
        config = small(faces, "steps=1")
        Trainer(config, tmp_path / "run").run()
        before = (tmp_path / "run" / "log.jsonl").read_bytes()
        with pytest.raises(FileExistsError, match="holds a training run already: add --resume"):
            Trainer(config, tmp_path / "run")
        assert (tmp_path / "run" / "log.jsonl").read_bytes() == before

    def test_a_finished_run_stays_as_it_is(self, faces, tmp_path):
        config = small(faces, "steps=2")
        Trainer(config, tmp_path / "run").run()
        before = weights(tmp_path / "run")
        Trainer(config, tmp_path / "run", resume=True).run()
        for name, value in weights(tmp_path / "run").items():
            assert torch.equal(value, before[name])

    def test_fewer_steps_than_were_run_are_refused(self, faces, tmp_path):
        Trainer(small(faces, "steps=2"), tmp_path / "run").run()
        with pytest.raises(ValueError, match="steps is 1, but the run is after step 2"):
            Trainer(small(faces, "steps=1"), tmp_path / "run", resume=True)

    def test_starts_from_a_saved_model(self, faces, tmp_path):
        config = small(faces, "model.use_refinement=false")
        coarse_only = MDRNets(config.model)
        coarse_only.save_pretrained(tmp_path / "coarse")
        trainer = Trainer(small(faces, f"init={tmp_path / 'coarse'}"), tmp_path / "run")
        for name, weight in coarse_only.state_dict().items():
            assert torch.equal(trainer.model.state_dict()[name], weight)
            assert torch.equal(trainer.ema.module.state_dict()[name], weight)
        assert trainer.model.refinement is not None
        with pytest.raises(ValueError, match="does not fit this model's configuration"):
            Trainer(small(faces, f"init={tmp_path / 'coarse'}", "model.coarse_channels=12"), tmp_path / "other")

    def test_a_loss_that_is_not_finite_stops_the_run(self, faces, tmp_path):
        trainer = Trainer(small(faces, "steps=2", "model.use_memory=false"), tmp_path / "run")
        # The weights stay finite.
        trainer.model.coarse.to_image.conv.register_forward_hook(lambda _, __, output: output * torch.nan)
        with pytest.raises(FloatingPointError, match="the run diverged: the loss became nan at step 0") as stop:
            trainer.run()
        assert "(not finite: hole, " in str(stop.value)
        assert "nothing was saved: start again, for example with a smaller lr" in str(stop.value)
        assert not list_checkpoints(tmp_path / "run" / "checkpoints")
        assert not (tmp_path / "run" / "model").exists()

    @pytest.mark.parametrize("at", [4, 5])  # a step that is saved, and one that is not
    def test_weights_that_are_not_finite_are_not_saved_and_named(self, faces, tmp_path, at):
        """A gradient overflowed, and the loss is still finite. At the next step a layer would blame its temperature."""
        trainer = Trainer(small(faces, "steps=8", "save_every=2", "keep=1"), tmp_path / "run")
        train_step = trainer.train_step

        def overflow(batches):
            losses = train_step(batches)
            if trainer.step == at:
                with torch.no_grad():
                    for weight in trainer.model.parameters():
                        weight.fill_(torch.nan)
            return losses

        trainer.train_step = overflow
        with pytest.raises(FloatingPointError, match=r"the run diverged: .*not finite") as stop:
            trainer.run()
        good = 2 if at == 4 else 4
        assert f"the last good checkpoint is {tmp_path}/run/checkpoints/step-0000000{good}.pt" in str(stop.value)
        assert "temperature" not in str(stop.value)
        assert load_checkpoint(tmp_path / "run" / "checkpoints")["step"] == good
        assert all(torch.isfinite(x).all() for x in MDRNets.from_pretrained(tmp_path / "run" / "model").parameters())

    def test_pictures_are_asked_for(self, tmp_path):
        with pytest.raises(ValueError, match="no training images: name either folders or shards, with --data"):
            Trainer(load_config(overrides=SMALL), tmp_path / "run")
        with pytest.raises(ValueError, match="folders and shards: name either folders or shards"):
            Trainer(small(tmp_path / "nowhere", "data.shards=[faces.tar]"), tmp_path / "run")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Trainer(small(tmp_path / "nowhere"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
    def test_device_that_is_not_there(self, faces, tmp_path, name):
        with pytest.raises(ValueError, match=f"device {name} can't be used: "):
            Trainer(small(faces, f"device={name}"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_learning_rate_rises_and_falls(self, faces, tmp_path):
        trainer = Trainer(small(faces, "steps=100", "warmup=10", "lr=0.5"), tmp_path / "run")
        lrs = [lr_at(trainer.config, trainer.schedule, step) for step in range(100)]
        assert lrs[0] == pytest.approx(0.05)
        assert max(lrs) == lrs[9] == pytest.approx(0.5, rel=0.03)
        assert lrs[9:] == sorted(lrs[9:], reverse=True)
        assert lrs[-1] < 1e-3
