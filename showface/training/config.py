"""The configuration of a training run: one dataclass, filled from defaults, a YAML file and dotted overrides."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from showface.baselines import NETWORKS, BaselineConfig
from showface.data import Augmentation
from showface.losses import LossWeights
from showface.models import InpaintingNetwork, MDRNets, MDRNetsConfig
from showface.registry import find_network

# Old names of settings and their new names. Files and overrides may still use the old names.
RENAMED = {"rate": "lr", "average": "ema_decay", "adversary": "gan"}
RENAMED_IN_GAN = {"rate": "lr_scale"}


@dataclass
class DataConfig:
    """The training images. `showface.data` describes folders, shards and `Augmentation`.

    Attributes:
        folders: folders of images, searched recursively. The labels of a folder are in `<folder>_parsing` beside it.
        shards: paths or URLs of tar files, instead of folders.
        size: side of the training images in pixels, a multiple of 16.
        min_side: images with a shorter side below this are left out.
        crop, colour, ratio, kind: see `Augmentation`.
        workers: processes that load images; 0 loads them in the main process.
    """

    folders: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    size: int = 256
    min_side: int = 0
    crop: tuple[float, float] = (0.9, 1.0)
    colour: float = 0.05
    ratio: tuple[float, float] = (0.01, 0.6)
    kind: str = "both"
    workers: int = 1

    def augmentation(self) -> Augmentation:
        """The augmentation with these settings. Raises ValueError for a setting out of range."""
        return Augmentation(self.size, colour=self.colour, crop=self.crop, ratio=self.ratio, kind=self.kind)


@dataclass
class GANConfig:
    """The discriminator, which exists if `loss.adversarial` is not 0.

    Attributes:
        start: number of steps before the adversarial loss is used.
        channels: output width of the discriminator's first convolution.
        layers: number of its convolutions with stride 2.
        lr_scale: its learning rate as a multiple of the network's.
    """

    start: int = 0
    channels: int = 64
    layers: int = 4
    lr_scale: float = 1.0


@dataclass
class TrainingConfig:
    """A training run.

    Attributes:
        data: the training images.
        system: the network to train: "mdrnets", or a baseline by its name in `showface.baselines.NETWORKS`.
        model: the configuration of MDRNets.
        baseline: the configuration of a baseline; `image_size` 0 takes the size of the training images.
        loss: the weights of the losses.
        gan: the discriminator.
        features: the frozen network of the perceptual and style losses, "efficientnet-lite0" or "vgg19".
        features_weights: file of its weights, for "vgg19".
        init: start from this model, for example to fine-tune it: the name of a bundled model or the folder of a saved
            model. Parts that it lacks (a coarse-only model has no refinement) keep random weights.
        steps: optimiser steps; the learning rate falls to 0 over them.
        batch: batch size, over all processes.
        accumulate: number of batches per step.
        lr: AdamW's peak learning rate.
        warmup: steps of linear warm-up of the learning rate.
        weight_decay: AdamW's weight decay.
        clip: largest norm of the gradient.
        ema_decay: decay of the exponential moving average (EMA) of the weights, which is saved as the model.
        precision: "fp32", or "bf16" for autocast.
        compile: use torch.compile for the network and its losses; the first steps take minutes.
        device: "auto", "cpu", "cuda", ...
        seed: seed of the weights, the data order and the holes.
        log_every, sample_every, save_every: steps between log entries, sample images and checkpoints.
        keep: number of checkpoints to keep.
    """

    data: DataConfig = field(default_factory=DataConfig)
    system: str = MDRNets.system
    model: MDRNetsConfig = field(default_factory=MDRNetsConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    gan: GANConfig = field(default_factory=GANConfig)
    features: str = "efficientnet-lite0"
    features_weights: str = ""
    init: str = ""
    steps: int = 100_000
    batch: int = 16
    accumulate: int = 1
    lr: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    precision: str = "fp32"
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        find_network(self.system)
        for name in ("steps", "batch", "accumulate", "log_every", "sample_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}")
        for name, value in (("lr", self.lr), ("gan.lr_scale", self.gan.lr_scale)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.data.size < 16 or self.data.size % 16:
            raise ValueError(f"data.size must be a multiple of 16, got {self.data.size}")

    @property
    def step_images(self) -> int:
        """Images per step, over all processes."""
        return self.batch * self.accumulate

    def network(self) -> InpaintingNetwork:
        """The network to train, with random weights."""
        if self.system == MDRNets.system:
            return MDRNets(self.model)
        size = self.baseline.image_size or self.data.size
        return NETWORKS[self.system](replace(self.baseline, image_size=size))


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read the defaults, then the YAML file, then overrides such as `data.size=128`.

    Old names of settings still work, with a warning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, an old and a new name of one setting, or a value of the wrong type or range.
    """
    config = OmegaConf.structured(TrainingConfig)
    for part in (config.model, config.baseline, config.loss):  # frozen dataclasses are read-only by default
        OmegaConf.set_readonly(part, False)
    try:
        if file is not None:
            config.merge_with(_with_new_names(OmegaConf.load(file)))
        for override in overrides:
            config.merge_with(_with_new_names(OmegaConf.from_dotlist([override])))
        return cast(TrainingConfig, OmegaConf.to_object(config))
    except YAMLError as error:
        raise ValueError(f"bad training configuration: {file} is not YAML: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        # OmegaConf puts the name of the setting on a separate line.
        name = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise ValueError(f"bad training configuration: {f'{name}: ' if name else ''}{reason}") from error


def _with_new_names(config: DictConfig | ListConfig) -> dict[str, Any] | DictConfig | ListConfig:
    """Replace old names of settings by their new ones, with one warning for all of them."""
    settings = OmegaConf.to_container(config)
    if not isinstance(settings, dict):
        return config
    told: list[str] = []

    def rename(names: dict[str, str], values: dict[Any, Any], old_section: str = "", section: str = "") -> None:
        for old, new in names.items():
            if old not in values:
                continue
            message = f"{old_section}{old} is now called {section}{new}"
            if new in values:
                raise ValueError(f"{message}: give only {section}{new}")
            values[new] = values.pop(old)
            told.append(message)

    old_section = "adversary." if "adversary" in settings else "gan."
    rename(RENAMED, settings)
    if isinstance(settings.get("gan"), dict):
        rename(RENAMED_IN_GAN, settings["gan"], old_section, "gan.")
    if told:
        warnings.warn(", ".join(told), stacklevel=3)
    return cast(dict[str, Any], settings)


def save_config(config: TrainingConfig, path: Path) -> None:
    """Write the whole configuration as YAML; `load_config` reads it back."""
    OmegaConf.save(OmegaConf.structured(config), path)
