"""The configuration of a training run: one dataclass, from defaults, a YAML file and dotted overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from showface.baselines import NETWORKS, BaselineConfig
from showface.data import Augmentation
from showface.losses import LossWeights
from showface.models import InpaintingNetwork, MDRNets, MDRNetsConfig
from showface.registry import find_network


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
class AdversaryConfig:
    """The discriminator, which is there when `loss.adversarial` is not 0.

    Attributes:
        start: the steps before the adversarial loss sets in, for a first stage without it.
        channels: width after the first convolution of the discriminator.
        layers: its convolutions with stride 2.
        rate: its learning rate as a multiple of the network's.
    """

    start: int = 0
    channels: int = 64
    layers: int = 4
    rate: float = 1.0


@dataclass
class TrainingConfig:
    """A training run.

    Attributes:
        system: what is trained: "mdrnets", or a baseline by its name in `showface.baselines.NETWORKS`.
        model: MDRNets' configuration.
        baseline: a baseline's; its `image_size` 0 is that of the training images.
        init: a bundled model's name or the folder of a saved one to start from, say to fine-tune it; what it lacks (a
            coarse-only model has no refinement) starts fresh.
        adversary: the discriminator's.
        features: the frozen network of the perceptual and style losses, "efficientnet-lite0" or "vgg19".
        features_weights: file of its weights, for "vgg19".
        steps: optimiser steps; the learning rate falls to 0 over them.
        batch: images that are computed at once, over all processes.
        accumulate: so many batches make a step.
        rate: AdamW's learning rate at its peak.
        warmup: steps over which the rate rises.
        weight_decay: AdamW's.
        clip: the largest norm of the gradient.
        average: decay of the weights' exponential average, which is what is saved as the model.
        precision: "fp32", or "bf16" for autocast.
        compile: compile the network and its losses by torch.compile; the first steps take minutes.
        device: "auto", "cpu", "cuda", ...
        seed: of weights, data order and holes.
        log_every, sample_every, save_every: steps between scalars, sample grids and checkpoints.
        keep: checkpoints that are kept.
    """

    data: DataConfig = field(default_factory=DataConfig)
    system: str = MDRNets.system
    model: MDRNetsConfig = field(default_factory=MDRNetsConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    features: str = "efficientnet-lite0"
    features_weights: str = ""
    init: str = ""
    steps: int = 100_000
    batch: int = 16
    accumulate: int = 1
    rate: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.999
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
        for name, rate in (("rate", self.rate), ("adversary.rate", self.adversary.rate)):
            if not rate > 0:
                raise ValueError(f"{name} must be positive, got {rate}")
        if self.data.size < 16 or self.data.size % 16:
            raise ValueError(f"data.size must be a multiple of 16, got {self.data.size}")

    @property
    def step_images(self) -> int:
        """Images of a step, over all processes."""
        return self.batch * self.accumulate

    def network(self) -> InpaintingNetwork:
        """The network to train, with fresh weights."""
        if self.system == MDRNets.system:
            return MDRNets(self.model)
        size = self.baseline.image_size or self.data.size
        return NETWORKS[self.system](replace(self.baseline, image_size=size))


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Defaults, then the YAML file, then overrides such as `data.size=128`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, or a value of the wrong kind or range.
    """
    config = OmegaConf.structured(TrainingConfig)
    for part in (config.model, config.baseline, config.loss):  # frozen, which would refuse the file's values
        OmegaConf.set_readonly(part, False)
    try:
        if file is not None:
            config.merge_with(OmegaConf.load(file))
        config.merge_with_dotlist(list(overrides))
        return cast(TrainingConfig, OmegaConf.to_object(config))
    except YAMLError as error:
        raise ValueError(f"bad training configuration: {file} is no YAML: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        # OmegaConf names the setting on a line of its own.
        name = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise ValueError(f"bad training configuration: {f'{name}: ' if name else ''}{reason}") from error


def save_config(config: TrainingConfig, path: Path) -> None:
    """Write the whole configuration as YAML, so that the run can be repeated from it."""
    OmegaConf.save(OmegaConf.structured(config), path)
