"""The training loop."""

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from showface.data import EpochSampler, FaceFolder, FaceShards
from showface.models import InpaintingNetwork
from showface.models.discriminator import PatchDiscriminator
from showface.nn import channels_last
from showface.training.adversary import discriminator_loss
from showface.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from showface.training.config import TrainingConfig, save_config
from showface.training.features import frozen_features
from showface.training.journal import Journal, peak_memory
from showface.training.objective import Objective, frozen, moved, shift_at
from showface.training.stop import outlive_first_signal, stop_on_signal

Batch = dict[str, Tensor]
Tensors = tuple[Tensor, ...] | list[Tensor]


class Trainer:
    """Trains a system, MDRNets or a baseline, and fills a folder.

    In it lie `config.yaml`, `log.jsonl`, `events` (TensorBoard), `checkpoints` and `model`. Processes that `accelerate
    launch` or `torchrun` started train together; the first of them writes.

    Args:
        config: the run. The configuration is written beside its results.
        out: the folder, made if needed.
        resume: go on from the newest whole checkpoint in `out`. On a CPU, the run becomes bit for bit what it would
            have been without a stop.

    Raises:
        FileExistsError: `out` holds a run already and `resume` is not set.
        FileNotFoundError: nothing to resume, or a data folder or weights that don't exist.
        ValueError: no data is named, the device can't be used, the batch can't be shared out between the
            processes, or the checkpoint is not of this configuration.
    """

    def __init__(self, config: TrainingConfig, out: str | Path, resume: bool = False) -> None:
        self.config, self.out = config, Path(out)
        self.checkpoints = self.out / "checkpoints"
        if list_checkpoints(self.checkpoints) and not resume:
            raise FileExistsError(f"{self.out} holds a training run already: add --resume, or choose another folder")
        self.accelerator = _accelerator(config.device)
        self.device, processes = self.accelerator.device, self.accelerator.num_processes
        if config.batch % processes:
            raise ValueError(f"batch is {config.batch}, which {processes} processes can't share evenly")
        self.dataset = _dataset(config)
        torch.manual_seed(config.seed)
        self.model = channels_last(config.network().to(self.device))
        if config.init:
            _start_from(self.model, config.init)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        weights = config.loss
        features = None
        if weights.perceptual or weights.style:
            features = channels_last(frozen_features(config.features, config.features_weights).to(self.device))
        self.discriminator: PatchDiscriminator | None = None
        if weights.adversarial:
            adversary = config.adversary
            self.discriminator = PatchDiscriminator(adversary.channels, adversary.layers).to(self.device)
            channels_last(self.discriminator)
        trained: dict[str, torch.nn.Module] = {"model": self.model}
        if self.discriminator is not None:
            trained["discriminator"] = self.discriminator
        # Two networks that chase each other swing with much momentum; 0.5 is Yu et al.'s, 2019.
        betas = (0.5 if self.discriminator is not None else 0.9, 0.999)
        self.optimisers = {
            name: torch.optim.AdamW(network.parameters(), betas=betas, weight_decay=config.weight_decay, fused=True)
            for name, network in trained.items()
        }
        self._rates = {"model": 1.0, "discriminator": config.adversary.rate}
        self._saved: dict[str, torch.nn.Module] = {**trained, "average": self.average}
        self.step = 0
        # The processes start alike, and then draw their own random numbers.
        torch.manual_seed(config.seed + self.accelerator.process_index)
        if resume:
            self._restore(load_checkpoint(self.checkpoints))
            if self.step > config.steps:
                raise ValueError(f"steps is {config.steps}, but the run is after step {self.step} already")
        objective: torch.nn.Module = Objective(self.model, weights, features)
        if config.compile:
            objective = torch.compile(objective)  # type: ignore[assignment]
        self._objective = self.accelerator.prepare_model(objective)
        self._judge: torch.nn.Module | None = None
        if self.discriminator is not None:
            self._judge = self.accelerator.prepare_model(self.discriminator)
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            save_config(config, self.out / "config.yaml")

    def run(self) -> Path:
        """Train to `config.steps`, saving on the way. Returns the folder of the averaged model.

        Raises:
            FloatingPointError: a loss is not finite. Nothing was saved since.
            SystemExit: a signal asked to stop (a second one stops at once); the step was finished and saved.
            OSError: the disk is full, or the data has vanished.
        """
        config = self.config
        opened = Journal(self.out, self.step, config.steps) if self.accelerator.is_main_process else nullcontext()
        with opened as journal, stop_on_signal() as request:
            sums: dict[str, Tensor] = {}
            started, since, waited = time.perf_counter(), self.step, 0.0
            batches = self._batches()
            while self.step < config.steps:
                asked = time.perf_counter()
                step_batches = list(islice(batches, config.accumulate))
                waited += time.perf_counter() - asked
                losses = self.train_step(step_batches)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, torch.zeros_like(loss)) + loss
                stop = self._agreed(request.by is not None)
                last = stop or self.step == config.steps
                saves = last or self.step % config.save_every == 0
                logs = last or self.step % config.log_every == 0
                # On a GPU, to look at a loss is to wait for it; but never save what was not looked at.
                if (logs or saves or self.device.type == "cpu") and not torch.stack([*sums.values()]).isfinite().all():
                    at = f"at step {since}" if self.step == since + 1 else f"within steps {since} to {self.step - 1}"
                    raise FloatingPointError(f"the loss became {sums['total'].item()} {at}; nothing was saved since")
                if logs:
                    taken, count = time.perf_counter() - started, self.step - since
                    means = self.accelerator.reduce({name: total / count for name, total in sums.items()}, "mean")
                    values = {name: float(mean) for name, mean in means.items()} | {
                        "rate": self._rate(),
                        "images_per_second": count * config.step_images / taken,
                        "waiting": waited / taken,
                        "memory_gib": peak_memory(self.device),
                    }
                    if journal:
                        journal.record(self.step, values)
                    sums, started, since, waited = {}, time.perf_counter(), self.step, 0.0
                if journal and (last or self.step % config.sample_every == 0):
                    journal.picture(self.step, self._samples(step_batches[-1]))
                if saves:
                    self.save()
                if journal:
                    journal.advance(self.step)
                if stop and self.step < config.steps:
                    if journal:
                        name = request.by.name if request.by else "a signal to another process"
                        journal.say(f"stopped by {name} after step {self.step}, which is saved: go on with --resume")
                    raise SystemExit(128 + (request.by or 0))
        return self.out / "model"

    def train_step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One step of the optimisers on batches of `FaceFolder` items; returns the mean losses, detached."""
        config, judge = self.config, None if self.step < self.config.adversary.start else self.discriminator
        for name, optimiser in self.optimisers.items():
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = self._rate() * self._rates[name]
        self.model.train()
        shift = shift_at(self.step)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            image = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
            hole, labels = (batch[name].to(self.device, non_blocking=True) for name in ("hole", "parsing"))
            with self._shares_gradients(self._objective, number == len(batches)):
                with self._autocast(), frozen(judge) if judge is not None else nullcontext():
                    result, losses = self._objective(image, hole, labels, judge, shift)
                self.accelerator.backward(losses["total"] / len(batches))
            if judge is not None and self._judge is not None:
                with self._shares_gradients(self._judge, number == len(batches)):
                    with self._autocast():
                        seen, cover = moved(torch.cat([image, result]), shift), moved(hole, shift)
                        real, fake = self._judge(seen, torch.cat([cover, cover])).chunk(2)
                        losses["discriminator"] = discriminator_loss(real, fake, cover)
                    self.accelerator.backward(losses["discriminator"] / len(batches))
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach() / len(batches)
            self.model.after_batch()
        self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimisers["model"].step()
        if judge is not None:
            self.optimisers["discriminator"].step()
        self.average.update_parameters(self.model)
        self.step += 1
        return sums

    def save(self) -> None:
        """Write a checkpoint, and the averaged model as `showface.load_model` reads it; all processes call it."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        state: dict[str, Any] = {"step": self.step, "random": gather_object([random])}
        if self.accelerator.is_main_process:
            for name, network in self._saved.items():
                state[name] = network.state_dict()
            state["optimisers"] = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
            save_checkpoint(self.checkpoints, self.step, state, self.config.keep)
            self._averaged_model().save_pretrained(self.out / "model")
        self.accelerator.wait_for_everyone()

    def _averaged_model(self) -> InpaintingNetwork:
        return cast(InpaintingNetwork, self.average.module)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        try:
            for name, network in self._saved.items():
                network.load_state_dict(state[name])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(state["optimisers"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            wanted = f"another system or configuration than this one of {self.config.system}"
            raise ValueError(f"the checkpoint in {self.checkpoints} is of {wanted}") from error
        number = self.accelerator.process_index
        if number >= len(state["random"]):
            warnings.warn("more processes than before the stop: the new ones draw new random numbers", stacklevel=3)
            return
        torch.set_rng_state(state["random"][number]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"][number]:
            torch.cuda.set_rng_state(state["random"][number]["cuda"], self.device)

    def _batches(self) -> Iterator[Batch]:
        config, processes = self.config, self.accelerator.num_processes
        sampler = EpochSampler(
            len(self.dataset),
            config.seed,
            start=self.step * config.step_images,
            stop=config.steps * config.step_images,
            batch=config.batch,
            rank=self.accelerator.process_index,
            world=processes,
        )
        yield from DataLoader(
            self.dataset,
            config.batch // processes,
            sampler=sampler,
            num_workers=config.data.workers,
            worker_init_fn=outlive_first_signal,
            pin_memory=self.device.type == "cuda",
            # A generator of its own: the loader would otherwise draw from the one that a checkpoint restores.
            generator=torch.Generator(),
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _shares_gradients(self, network: Any, now: bool) -> Any:
        """The processes' gradients are shared with the last batch of a step, not before."""
        return nullcontext() if now else self.accelerator.no_sync(network)

    def _agreed(self, asked: bool) -> bool:
        """Whether any process was asked."""
        if self.accelerator.num_processes == 1:
            return asked
        return bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.device), "sum") > 0)

    def _rate(self) -> float:
        """The learning rate of the coming step: a linear rise, then half a cosine to 0."""
        config = self.config
        rise = min((self.step + 1) / max(config.warmup, 1), 1.0)
        return config.rate * rise * 0.5 * (1 + math.cos(math.pi * min(self.step / config.steps, 1.0)))

    def _average(self, averaged: Tensors, current: Tensors, count: int | Tensor) -> None:
        """The exponential average, faster at the start so that the random first weights are soon forgotten."""
        decay = min(self.config.average, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    @torch.no_grad()
    def _samples(self, batch: Batch, count: int = 4) -> Tensor:
        """A grid (3, H, W) in [0, 1]: a row an image, of input, coarse image, result and target."""
        image, hole = (batch[name][:count].to(self.device) for name in ("image", "hole"))
        output = self._averaged_model().eval()(image, hole)
        masked = torch.where(hole > 0.5, torch.ones_like(image), image)
        rows = torch.cat([masked, output.coarse, output.image, image], dim=3)  # (B, 3, H, 4 W)
        return torch.cat(list(rows), dim=1).float().clamp(-1, 1).add(1).div(2).cpu()


def _accelerator(device: str) -> Accelerator:
    """What knows the processes and their devices. Raises ValueError for a device that can't be used."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} can't be used: {str(error).splitlines()[0]}") from error
    if not launched:
        # Accelerate keeps the first device that a process asked for, for good.
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    return Accelerator(cpu=device == "cpu")


def _dataset(config: TrainingConfig) -> FaceFolder | FaceShards:
    """The training images. Raises ValueError unless the configuration names either folders or shards."""
    data = config.data
    if bool(data.folders) == bool(data.shards):
        given = "folders and shards" if data.folders else "no training images"
        raise ValueError(f"{given}: name folders with --data or data.folders, or else shards with data.shards")
    augmentation = data.augmentation()
    if data.folders:
        return FaceFolder(data.folders, augmentation, min_side=data.min_side, seed=config.seed)
    return FaceShards(data.shards, augmentation, min_side=data.min_side, seed=config.seed)


def _start_from(model: InpaintingNetwork, folder: str) -> None:
    """Copy the weights of a saved model; parts that it doesn't have keep their own."""
    state = type(model).from_pretrained(folder).state_dict()
    own = model.state_dict()
    unfit = [name for name, x in state.items() if name not in own or own[name].shape != x.shape]
    if unfit:
        raise ValueError(f"init={folder} does not fit this model's configuration: {', '.join(unfit[:3])}, ...")
    model.load_state_dict(state, strict=False)
