"""The training loop."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from showface.data import EpochSampler, FaceFolder
from showface.models import InpaintingNetwork
from showface.nn import channels_last
from showface.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from showface.training.config import TrainingConfig, save_config


class Trainer:
    """Trains a system, MDRNets or a baseline, and fills a folder.

    In it lie `config.yaml`, `log.jsonl`, `events` (TensorBoard), `checkpoints` and `model`.

    Args:
        config: the run. The configuration is written beside its results.
        out: the folder, made if needed.
        resume: go on from the newest checkpoint in `out`.

    Raises:
        FileExistsError: `out` holds a run already and `resume` is not set.
        FileNotFoundError: nothing to resume, or a data folder that doesn't exist.
        ValueError: no data folder is named, the device can't be used, or the checkpoint is not of this configuration.
    """

    def __init__(self, config: TrainingConfig, out: str | Path, resume: bool = False) -> None:
        if not config.data.folders:
            raise ValueError("no training images: name a folder with --data or data.folders")
        self.config, self.out = config, Path(out)
        self.checkpoints = self.out / "checkpoints"
        if list_checkpoints(self.checkpoints) and not resume:
            raise FileExistsError(f"{self.out} holds a training run already: add --resume, or choose another folder")
        torch.manual_seed(config.seed)
        data = config.data
        self.dataset = FaceFolder(
            data.folders,
            data.size,
            min_side=data.min_side,
            crop_scale=data.crop,
            colour=data.colour,
            ratio=data.ratio,
            kind=data.kind,
            seed=config.seed,
        )
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            self.model = channels_last(config.network().to(self.device))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device} can't be used: {str(error).splitlines()[0]}") from error
        if config.init:
            _start_from(self.model, config.init)
        self.average = AveragedModel(self.model, avg_fn=self._average)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.rate, weight_decay=config.weight_decay, fused=True
        )
        self.step = 0
        if resume:
            self._restore(load_checkpoint(self.checkpoints))
            if self.step > config.steps:
                raise ValueError(f"steps is {config.steps}, but the run is after step {self.step} already")
        self.out.mkdir(parents=True, exist_ok=True)
        save_config(config, self.out / "config.yaml")

    def run(self) -> Path:
        """Train to `config.steps`, saving on the way. Returns the folder of the averaged model."""
        config = self.config
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with SummaryWriter(self.out / "events") as writer, Progress(*columns) as progress:
            task = progress.add_task("train", total=config.steps, completed=self.step, status="")
            sums: dict[str, Tensor] = {}
            started, counted = time.perf_counter(), 0
            for batch in self._batches():
                losses = self.train_step(batch)
                counted += 1
                for name, loss in losses.items():
                    sums[name] = sums.get(name, torch.zeros_like(loss)) + loss
                if self.step % config.log_every == 0 or self.step == config.steps:
                    speed = counted * config.batch / (time.perf_counter() - started)
                    record = {name: float(total) / counted for name, total in sums.items()}
                    record |= {"rate": self._rate(), "images_per_second": speed}
                    self._log(writer, record)
                    progress.update(task, status=f"loss {record['total']:.4f}  {speed:.1f} images/s")
                    sums, started, counted = {}, time.perf_counter(), 0
                if self.step % config.sample_every == 0 or self.step == config.steps:
                    writer.add_image("samples", self._samples(batch), self.step)
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()
                progress.update(task, completed=self.step)
        return self.out / "model"

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the optimiser on a batch of `FaceFolder` items; returns the losses, detached."""
        config, model = self.config, self.model
        image = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        hole = batch["hole"].to(self.device, non_blocking=True)
        labels = batch["parsing"].to(self.device, non_blocking=True)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses = model.training_losses(image, hole, labels, config.loss)
        if not losses["total"].isfinite():
            raise FloatingPointError(f"the loss became {losses['total'].item()} at step {self.step}")
        self.optimiser.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        self.optimiser.step()
        model.after_step()
        self.average.update_parameters(model)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self) -> None:
        """Write a checkpoint, and the averaged model as `showface.load_model` reads it."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(self.checkpoints, self.step, state, self.config.keep)
        self._averaged_model().save_pretrained(self.out / "model")

    def _averaged_model(self) -> InpaintingNetwork:
        return cast(InpaintingNetwork, self.average.module)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            wanted = f"another system or configuration than this one of {self.config.system}"
            raise ValueError(f"the checkpoint in {self.checkpoints} is of {wanted}") from error
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        config = self.config
        sampler = EpochSampler(
            len(self.dataset), config.seed, start=self.step * config.batch, stop=config.steps * config.batch
        )
        yield from DataLoader(
            self.dataset,
            config.batch,
            sampler=sampler,
            num_workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
            # A generator of its own: the loader would otherwise draw from the one that a checkpoint restores.
            generator=torch.Generator(),
        )

    def _rate(self) -> float:
        """The learning rate of the coming step: a linear rise, then half a cosine to 0."""
        config = self.config
        rise = min((self.step + 1) / max(config.warmup, 1), 1.0)
        return config.rate * rise * 0.5 * (1 + math.cos(math.pi * min(self.step / config.steps, 1.0)))

    def _average(self, averaged: Tensor, current: Tensor, count: int | Tensor) -> Tensor:
        """The exponential average, faster at the start so that the random first weights are soon forgotten."""
        decay = min(self.config.average, (1 + int(count)) / (10 + int(count)))
        return torch.lerp(current, averaged, decay)

    def _log(self, writer: SummaryWriter, record: dict[str, float]) -> None:
        for name, value in record.items():
            writer.add_scalar(name, value, self.step)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **record}) + "\n")

    @torch.no_grad()
    def _samples(self, batch: dict[str, Tensor], count: int = 4) -> Tensor:
        """A grid (3, H, W) in [0, 1]: a row an image, of input, coarse image, result and target."""
        image, hole = (batch[name][:count].to(self.device) for name in ("image", "hole"))
        output = self._averaged_model().eval()(image, hole)
        masked = torch.where(hole > 0.5, torch.ones_like(image), image)
        rows = torch.cat([masked, output.coarse, output.image, image], dim=3)  # (B, 3, H, 4 W)
        return torch.cat(list(rows), dim=1).float().clamp(-1, 1).add(1).div(2).cpu()


def _start_from(model: InpaintingNetwork, folder: str) -> None:
    """Copy the weights of a saved model; parts that it doesn't have keep their own."""
    state = type(model).from_pretrained(folder).state_dict()
    own = model.state_dict()
    unfit = [name for name, x in state.items() if name not in own or own[name].shape != x.shape]
    if unfit:
        raise ValueError(f"init={folder} does not fit this model's configuration: {', '.join(unfit[:3])}, ...")
    model.load_state_dict(state, strict=False)
