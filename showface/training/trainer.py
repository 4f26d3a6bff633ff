"""The training loop."""

import math
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from showface.distributed import lost_processes
from showface.models import InpaintingNetwork
from showface.models.discriminator import Discriminator
from showface.models.stages import Stage, StageSchedule
from showface.nn import channels_last
from showface.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from showface.training.config import TrainingConfig
from showface.training.divergence import bad_weight, divergence
from showface.training.features import frozen_features
from showface.training.gan import PENALTY_EVERY, discriminator_objective
from showface.training.lock import FolderLock, lock_folder
from showface.training.logger import Logger, Meter, NullLogger, peak_memory, sample_grid
from showface.training.objective import Objective, frozen
from showface.training.resume import Change, explain, find_changes, remove_leftovers, write_config
from showface.training.setup import (
    betas_at,
    lr_at,
    make_accelerator,
    make_dataset,
    make_discriminator,
    make_loader,
    make_optimiser,
    start_from,
)
from showface.training.signals import StopRequest, stop_on_signal
from showface.training.validation import Validation
from showface.training.views import shift_at, zoom_at
from showface.training.workers import batches_of, worker_errors

Batch = dict[str, Tensor]
Tensors = tuple[Tensor, ...] | list[Tensor]
SAMPLES = 4  # images of a logged grid


class Trainer:
    """Trains MDRNets or a baseline, and writes all results into one folder.

    The folder gets `config.yaml`, `log.jsonl`, `events` (TensorBoard), `checkpoints` and `model`, and `best` if there
    are validation images. Processes started by `accelerate launch` or `torchrun` train together; the first of them
    writes.

    Args:
        config: the run. The configuration is written beside its results.
        out: the folder, made if needed.
        resume: continue from the newest intact checkpoint in `out`. On a CPU, the resumed run is bit for bit the same
            as a run without a stop. `resumed_config` gives the run's own settings; settings that differ from them are
            printed when the run goes on, and recorded in `config.yaml`.

    Raises:
        BlockingIOError: another process trains in `out`.
        FileExistsError: `out` already holds a run and `resume` is not set.
        FileNotFoundError: no checkpoint to resume from, or a data folder or weights that don't exist.
        ValueError: no data is named, the device can't be used, the batch can't be split evenly between the processes,
            the network has too few regions for the labels, or the checkpoint belongs to another configuration.
    """

    def __init__(self, config: TrainingConfig, out: str | Path, resume: bool = False) -> None:
        config.check()  # its attributes may have been set since it was made
        self.config, self.out = config, Path(out)
        self.checkpoints = self.out / "checkpoints"
        self.accelerator = make_accelerator(config.device)
        self._lock: FolderLock | None = None
        if self.out.is_dir():
            self._claim(resume)
        self.device, processes = self.accelerator.device, self.accelerator.num_processes
        if config.batch % processes:
            raise ValueError(f"batch is {config.batch}, which {processes} processes can't share evenly")
        self.dataset = make_dataset(config)
        torch.manual_seed(config.seed)
        self.model = channels_last(config.network().to(self.device))
        if config.init and not resume:
            start_from(self.model, config.init)
        for part in self.model.untrained(config.loss):
            part.requires_grad_(False)
        self.ema = AveragedModel(self.model, multi_avg_fn=self._update_ema)
        weights, gan = config.loss, config.gan
        self._features = None
        if weights.compares_features or (weights.adversarial and gan.on_features):
            self._features = channels_last(frozen_features(config.features, config.features_weights).to(self.device))
        self.discriminator: Discriminator | None = None
        if weights.adversarial:
            self.discriminator = channels_last(make_discriminator(gan, self._features).to(self.device))
        trained: dict[str, torch.nn.Module] = {"model": self.model}
        if self.discriminator is not None:
            trained["discriminator"] = self.discriminator
        self.optimisers = {name: make_optimiser(config, name, x.parameters()) for name, x in trained.items()}
        self._lr_scales = {"model": 1.0, "discriminator": gan.lr_scale}
        self._saved: dict[str, torch.nn.Module] = {**trained, "ema": self.ema}
        self.step = 0
        self.schedule = StageSchedule(self.model.stages, config.steps)
        self._start_stage()
        # All processes start with the same weights. From here on, each draws its own random numbers.
        torch.manual_seed(config.seed + self.accelerator.process_index)
        self._validation: Validation | None = None
        if config.data.validation and self.accelerator.is_main_process:
            self._validation = Validation(config.data)
        self._best = math.inf  # the lowest L1 on the validation images so far
        self._changes: list[Change] = []
        if resume:
            self._changes = find_changes(self.out, config)
            self._restore(load_checkpoint(self.checkpoints))
            if self.step > config.steps:
                raise ValueError(f"steps is {config.steps}, but the run is after step {self.step} already")
        self._objective = self._make_objective()
        self._discriminator: torch.nn.Module | None = None
        if self.discriminator is not None:
            self._discriminator = self.accelerator.prepare_model(self.discriminator)
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            self._claim(resume)
            remove_leftovers(self.out)
            write_config(self.out, config, self._changes, self.step)

    def run(self) -> Path:
        """Train to `config.steps`, saving on the way. Returns the folder of the EMA model.

        Raises:
            FloatingPointError: a loss is not finite. Nothing was saved after that step.
            SystemExit: a signal requested a stop. The step was finished and saved. A second signal stops at once.
            OSError: the disk is full, the data has vanished, a data worker was killed, or another process trains in the
                folder.
        """
        try:
            self._claim(resume=True)
            return self._run()
        finally:
            self._lock = None

    def _run(self) -> Path:
        config, main = self.config, self.accelerator.is_main_process
        logger = Logger(self.out, self.step, config.steps) if main else NullLogger()
        with (
            logger,
            stop_on_signal() as request,
            closing(self._batches()) as batches,
            lost_processes(),
            worker_errors(),
            divergence(self._saved, self.checkpoints),
        ):
            meter = Meter(self.step)
            for line in explain(self._changes, self.step, config):
                logger.message(line)
            if main and self.step:
                self._save_model()  # a kill may have come between the checkpoint and the model
            while self.step < config.steps:
                step_batches = self._fetch(batches, meter)
                meter.add(self.train_step(step_batches))
                stopped = self._any_process(request.by is not None)
                last = stopped or self.step == config.steps
                # The means of the log are over steps of one stage, because stages have different losses.
                logs = last or self.step % config.log_every == 0 or self.schedule.is_border(self.step)
                planned = self.step == config.steps or self.step % config.save_every == 0
                saves = stopped or planned
                # Not where a signal stopped the run, which may have little time left to save it.
                validates = planned and self.stage.paints and bool(config.data.validation)
                samples = self.stage.paints and (last or self.step % config.sample_every == 0)
                # On a GPU, a check waits for the step to end, so it only runs before logging and before saving.
                if logs or saves or self.device.type == "cpu":
                    meter.check(self.step)
                if logs or validates:
                    self._log(logger, meter, validates)
                    meter = Meter(self.step)
                if samples and main:
                    images, holes = (step_batches[-1][name][:SAMPLES].to(self.device) for name in ("image", "hole"))
                    logger.image(self.step, sample_grid(self._ema_model().eval(), images, holes))
                if saves:
                    self.save()
                logger.advance(self.step)
                if stopped and self.step < config.steps:
                    self._exit(logger, request)
        return self.out / "model"

    def train_step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One step of the optimisers on batches of `FaceFolder` items; returns the mean losses, detached."""
        config, gan = self.config, self.config.gan
        discriminator = self.discriminator if self.stage.paints and self.step >= gan.start else None
        first = max(gan.start, self.schedule.span(self.step)[0])  # its first step, in a system with stages too
        alone = discriminator is not None and self.step < first + gan.alone
        for name, optimiser in self.optimisers.items():
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = lr_at(config, self.schedule, self.step) * self._lr_scales[name]
                group["betas"] = betas_at(optimiser, discriminator is not None)
        self.model.train()
        means: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            losses = self._backward(batch, discriminator, alone, len(batches), last=number == len(batches))
            for name, loss in losses.items():
                means[name] = means.get(name, torch.zeros_like(loss)) + loss.detach() / len(batches)
            if not alone:
                self.model.update_memory()
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if "model" in self.optimisers:
            self.optimisers["model"].step()
        if discriminator is not None:
            self.optimisers["discriminator"].step()
        self.ema.update_parameters(self.model)
        self.step += 1
        if self.schedule.is_border(self.step):
            self._next_stage()
        return means

    def save(self) -> None:
        """Write a checkpoint, and the EMA model in the format of `showface.load_model`; all processes must call it.

        Raises:
            FloatingPointError: a weight is not finite; nothing was written.
            OSError: the files can't be written, for example on a full disk. The old ones stay.
        """
        bad = bad_weight(self._saved)
        if bad is not None:
            raise FloatingPointError(f"the weight {bad} is not finite after step {self.step}")
        state: dict[str, Any] = {"step": self.step, "stage": self.stage.name, "images": len(self.dataset)}
        if self._validation is not None:
            state["best"] = {"score": self._best, **self._validation.settings}
        state["random"] = gather_object([random_state(self.device)])
        if self.accelerator.is_main_process:
            for name, network in self._saved.items():
                state[name] = network.state_dict()
            state["optimisers"] = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
            save_checkpoint(self.checkpoints, self.step, state, self.config.keep)
            self._save_model()
        self.accelerator.wait_for_everyone()

    def _save_model(self, name: str = "model") -> None:
        """Write the EMA model. Raises OSError."""
        try:
            self._ema_model().save_pretrained(self.out / name)
        except (OSError, SafetensorError) as error:
            raise OSError(f"can't write the model in {self.out / name}: {error}") from error

    def _claim(self, resume: bool) -> None:
        """Lock the folder against other processes, in the first process only, and look for an older run."""
        if self._lock is None and self.accelerator.is_main_process:
            self._lock = lock_folder(self.out)
        if list_checkpoints(self.checkpoints) and not resume:
            raise FileExistsError(f"{self.out} holds a training run already: add --resume, or choose another folder")

    def _fetch(self, batches: Iterator[Batch], meter: Meter) -> list[Batch]:
        """The batches of the next step."""
        started = time.perf_counter()
        step_batches = list(islice(batches, self.config.accumulate))
        meter.waited += time.perf_counter() - started
        return step_batches

    def _backward(
        self, batch: Batch, discriminator: Discriminator | None, alone: bool, count: int, last: bool
    ) -> dict[str, Tensor]:
        """Add the gradients of one batch, divided by the step's `count` of batches. Returns the batch's losses.

        If the discriminator learns `alone`, the network gets no gradients, and its optimiser leaves it as it is.
        """
        image = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        hole, labels = (batch[name].to(self.device, non_blocking=True) for name in ("hole", "parsing"))
        shift, zoom = shift_at(self.step), zoom_at(batch["hole"], self.config.zoom)
        judge = None if alone else discriminator
        with self._sync(self._objective, last):
            with torch.set_grad_enabled(not alone), self._autocast(), frozen(judge):
                seen, losses = self._objective(image, hole, labels, judge, shift, zoom)
            if losses["total"].requires_grad:  # not in a stage that only fills buffers
                self.accelerator.backward(losses["total"] / count)
        if discriminator is not None and self._discriminator is not None:
            with self._sync(self._discriminator, last):
                r1 = self.config.gan.r1 * PENALTY_EVERY if self.step % PENALTY_EVERY == 0 else 0.0
                with self._autocast():
                    loss, total = discriminator_objective(self._discriminator, seen, r1)
                losses["discriminator"] = loss
                self.accelerator.backward(total / count)
        return losses

    @property
    def stage(self) -> Stage:
        """The stage of the next step; after the last step, the stage of the last step."""
        return self.schedule.at(self.step)

    def _start_stage(self) -> None:
        """Freeze what the stage does not train, and give it a new optimiser."""
        if not self.model.stages:
            return
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # otherwise the clipping counts the gradients of the stage before
        trained = self.stage.parameters(self.model)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.optimisers.pop("model", None)
        if trained:
            self.optimisers["model"] = make_optimiser(self.config, "model", trained)

    def _next_stage(self) -> None:
        """Go on with the next stage, from the averaged weights: those are saved, so later stages must fit them."""
        self.model.load_state_dict(self._ema_model().state_dict())
        self.ema.n_averaged.zero_()
        self._start_stage()
        self._objective = self._make_objective()

    def _make_objective(self) -> torch.nn.Module:
        objective: torch.nn.Module = Objective(self.model, self.config.loss, self._features, self.stage)
        if self.config.compile:
            objective = torch.compile(objective)  # type: ignore[assignment]
        if "model" not in self.optimisers:
            return objective
        # With several processes, this wrapper averages the gradients. It refuses a module that has none.
        return cast(torch.nn.Module, self.accelerator.prepare_model(objective))

    def _validate(self) -> dict[str, float]:
        """Score the EMA model, in the first process alone, and keep it in `best` if it is the best so far."""
        if self._validation is None:
            return {}
        with self._autocast():
            scores = self._validation(self._ema_model().eval(), self.device)
        if scores["validation_hole"] < self._best:
            self._best = scores["validation_hole"]
            self._save_model("best")
        return scores

    def _log(self, logger: NullLogger, meter: Meter, validates: bool) -> None:
        """Log the mean losses and the speed since the last entry, and scores; all processes must call it."""
        taken, count = time.perf_counter() - meter.started, self.step - meter.first_step
        means = self.accelerator.reduce(meter.means(), "mean")
        values = {name: float(mean) for name, mean in means.items()} | {
            "lr": lr_at(self.config, self.schedule, self.step - 1),
            "images_per_second": count * self.config.step_images / taken,
            "waiting": meter.waited / taken,
            "memory_gib": peak_memory(self.device),
        }
        logger.scalars(self.step, values | self._validate() if validates else values)

    def _exit(self, logger: NullLogger, request: StopRequest) -> NoReturn:
        """End a run that a signal stopped."""
        name = request.by.name if request.by else "a signal to another process"
        logger.message(f"stopped by {name} after step {self.step}, which is saved: go on with --resume")
        raise SystemExit(128 + (request.by or 0))

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        saved = state["stage"]
        if saved != self.stage.name:
            wanted = f"of another system or configuration than this one of {self.config.system}"
            raise ValueError(
                f"the checkpoint in {self.checkpoints} is {wanted}: it is in stage {saved!r}, and step {self.step} of "
                f"{self.config.steps} belongs to stage {self.stage.name!r}"
            )
        self._start_stage()
        try:
            for name, network in self._saved.items():
                network.load_state_dict(state[name])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(state["optimisers"][name])
                for group in optimiser.param_groups:
                    group["weight_decay"] = self.config.weight_decay  # it may have been changed for the rest of the run
        except (KeyError, RuntimeError, ValueError) as error:
            wanted = f"another system or configuration than this one of {self.config.system}"
            changed = "; changed since: " + ", ".join(map(str, self._changes)) if self._changes else ""
            raise ValueError(f"the checkpoint in {self.checkpoints} is of {wanted}{changed}") from error
        best = dict(state.get("best", {}))
        score = best.pop("score", math.inf)
        if self._validation is not None and best == self._validation.settings:
            self._best = score
        before, now = state["images"], len(self.dataset)
        if before != now:
            text = f"there were {before} images before the stop, and now {now}: their order is another one"
            warnings.warn(text, stacklevel=3)
        number = self.accelerator.process_index
        if number >= len(state["random"]):
            warnings.warn("more processes than before the stop: the new ones draw new random numbers", stacklevel=3)
            return
        restore_random_state(state["random"][number], self.device)

    def _batches(self) -> Generator[Batch, None, None]:
        pinned = self.device.type == "cuda"
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        yield from batches_of(make_loader(self.dataset, self.config, self.step, process, processes, pinned))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _sync(self, network: Any, last: bool) -> Any:
        """Average gradients over the processes only in the last batch of a step."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    def _any_process(self, asked: bool) -> bool:
        """Return whether `asked` is true in at least one process."""
        if self.accelerator.num_processes == 1:
            return asked
        return bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.device), "sum") > 0)

    def _update_ema(self, averaged: Tensors, current: Tensors, _: int | Tensor) -> None:
        """Update the EMA, with a smaller decay at the start, so that the random first weights are soon forgotten."""
        count = int(self.ema.n_averaged)  # on the CPU; the argument is a copy on the GPU, which a read would wait for
        decay = min(self.config.ema_decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def _ema_model(self) -> InpaintingNetwork:
        return cast(InpaintingNetwork, self.ema.module)
