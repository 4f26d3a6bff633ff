"""What a run is made of: processes, devices, images, a discriminator, optimisers, and the weights it starts from."""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from showface.data import REGIONS, EpochSampler, FaceFolder, FaceShards
from showface.distributed import check_device
from showface.models import InpaintingNetwork, MDRNets
from showface.models.discriminator import Discriminator, FeatureDiscriminator, MultiScaleDiscriminator
from showface.models.stages import StageSchedule
from showface.training.config import GANConfig, TrainingConfig
from showface.training.features import FrozenFeatures
from showface.training.muon import Muon
from showface.training.workers import start_worker


def make_accelerator(device: str) -> Accelerator:
    """Accelerate's view of processes and devices. Raises ValueError for a device that can't be used."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    if not launched:
        # Accelerate's state is global and keeps the first device: reset it.
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    # Buffers need not be sent at every forward. Their updates are reduced over the processes; those of batch norms are
    # not, but only the first process saves them.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    # `accelerate launch` may name a precision, in its own configuration too; the run's `precision` counts.
    return Accelerator(mixed_precision="no", cpu=device == "cpu", kwargs_handlers=handlers)


def make_dataset(config: TrainingConfig) -> FaceFolder | FaceShards:
    """The training images.

    Raises:
        ValueError: the configuration names neither folders nor shards, or both, or fewer regions than labels have.
    """
    data = config.data
    if bool(data.folders) == bool(data.shards):
        given = "folders and shards" if data.folders else "no training images"
        raise ValueError(f"{given}: name either folders or shards, with --data, data.folders or data.shards")
    augmentation = data.augmentation()
    dataset: FaceFolder | FaceShards
    if data.folders:
        dataset = FaceFolder(data.folders, augmentation, min_side=data.min_side, seed=config.seed)
    else:
        dataset = FaceShards(data.shards, augmentation, min_side=data.min_side, seed=config.seed)
    if dataset.labelled and config.system == MDRNets.system and config.model.regions < len(REGIONS):
        raise ValueError(f"images with labels need model.regions={len(REGIONS)}, got {config.model.regions}")
    return dataset


def make_loader(
    dataset: FaceFolder | FaceShards, config: TrainingConfig, step: int, process: int, processes: int, pinned: bool
) -> DataLoader[Any]:
    """Loads one process's part of each batch, from a step to the end of the run.

    Args:
        step: the first step. The same images follow as in a run that has come there without a stop.
        process, processes: the number of this process, and how many there are.
        pinned: whether batches are put into pinned memory.
    """
    sampler = EpochSampler(
        len(dataset),
        config.seed,
        start=step * config.step_images,
        stop=config.steps * config.step_images,
        batch=config.batch,
        rank=process,
        world=processes,
    )
    return DataLoader(
        dataset,
        config.batch // processes,
        sampler=sampler,
        num_workers=config.data.workers,
        worker_init_fn=start_worker,
        pin_memory=pinned,
        # Its own generator: otherwise the loader draws from the global one, which checkpoints restore.
        generator=torch.Generator(),
    )


def make_optimiser(config: TrainingConfig, network: str, parameters: Iterable[Tensor]) -> Optimizer:
    """The optimiser of the "model", or of the "discriminator", which is always AdamW."""
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimiser == "muon" and network == "model":
        return Muon(parameters, **settings, dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32)
    return AdamW(parameters, **settings, fused=True)


def betas_at(optimiser: Optimizer, adversarial: bool) -> tuple[float, float]:
    """The decays of an optimiser's momentum and squared gradients, in a step with or without a discriminator."""
    momentum, squares = optimiser.defaults["betas"]
    # High momentum makes the two networks of a GAN oscillate; 0.5 is from Yu et al., 2019.
    return (0.5 if adversarial else momentum), squares


def lr_at(config: TrainingConfig, schedule: StageSchedule, step: int) -> float:
    """The learning rate after `step` steps: linear warm-up, times half a cosine down to 0, in each stage."""
    start, end = schedule.span(step)
    warmup = min((step - start + 1) / max(config.warmup, 1), 1.0)
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * min((step - start) / (end - start), 1.0)))


def make_discriminator(gan: GANConfig, features: FrozenFeatures | None) -> Discriminator:
    """The discriminator, on the frozen network's feature maps or on pixels."""
    normalise = not gan.r1
    if gan.on_features:
        assert features is not None
        return FeatureDiscriminator(features, gan.channels, normalise)
    return MultiScaleDiscriminator(gan.channels, gan.layers, gan.scales, normalise)


def start_from(model: InpaintingNetwork, folder: str) -> None:
    """Copy the weights of a saved model. Parts of `model` that the saved model lacks keep their weights."""
    state = type(model).from_pretrained(folder).state_dict()
    own = model.state_dict()
    unfit = [name for name, x in state.items() if name not in own or own[name].shape != x.shape]
    if unfit:
        raise ValueError(f"init={folder} does not fit this model's configuration: {', '.join(unfit[:3])}, ...")
    model.load_state_dict(state, strict=False)
