"""The configuration of a training run: one dataclass, filled from defaults, a YAML file and dotted overrides."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from showface.baselines import BASELINES, BaselineConfig
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
        validation: folders of images that were put aside. At each checkpoint the EMA model is scored on them, and the
            best one is kept beside the last one.
        size: side of the training images in pixels, a multiple of 16.
        min_side: images with a shorter side below this are left out.
        crop, colour, ratio, kind, components: see `Augmentation`.
        workers: processes that load images; 0 loads them in the main process.
    """

    folders: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    size: int = 256
    min_side: int = 0
    crop: tuple[float, float] = (0.9, 1.0)
    colour: float = 0.05
    ratio: tuple[float, float] = (0.01, 0.6)
    kind: str = "both"
    components: float = 0.0
    workers: int = 1

    def check(self) -> None:
        """Raise ValueError if a setting is out of range."""
        _check("data.size", self.size, "a multiple of 16", lambda x: x >= 16 and x % 16 == 0)
        _check("data.min_side", self.min_side, "at least 0", lambda x: x >= 0)
        _check("data.workers", self.workers, "at least 0", lambda x: x >= 0)
        try:
            self.augmentation()
        except ValueError as error:
            raise ValueError(f"data.{error}") from error
        # Otherwise there would be no hole to learn from.
        _check("data.ratio", self.ratio, "two numbers, the second above 0", lambda x: x[1] > 0)

    def augmentation(self) -> Augmentation:
        """The augmentation with these settings. Raises ValueError for a setting out of range."""
        names = ("size", "colour", "crop", "ratio", "kind", "components")
        return Augmentation(**{name: getattr(self, name) for name in names})


@dataclass
class GANConfig:
    """The discriminator, which exists if `loss.adversarial` is not 0.

    Attributes:
        start: number of steps before the adversarial loss is used.
        alone: number of steps, from `start` on, in which the discriminator learns and the network does not.
        on_features: whether it sees the feature maps of the frozen network `features`, see
            `showface.models.discriminator.FeatureDiscriminator`, and not pixels. `layers` and `scales` then have no
            effect.
        channels: output width of the discriminator's first convolution; with `on_features`, the width of each head.
        layers: number of its convolutions with stride 2.
        scales: number of discriminators; each further one sees the image at half the size, and so twice as far.
        lr_scale: its learning rate as a multiple of the network's.
        r1: weight of `showface.training.gan.gradient_penalty`. With 0 the discriminator has spectral normalisation
            instead.
    """

    start: int = 0
    alone: int = 0
    on_features: bool = False
    channels: int = 64
    layers: int = 4
    scales: int = 1
    lr_scale: float = 1.0
    r1: float = 0.0


@dataclass
class TrainingConfig:
    """A training run.

    Attributes:
        data: the training images.
        system: the network to train: "mdrnets", or a baseline by its name in `showface.baselines.BASELINES`.
        model: the configuration of MDRNets; its `image_size` has no effect, since `data.size` takes its place.
        baseline: the configuration of a baseline; `image_size` 0 takes the size of the training images.
        loss: the weights of the losses.
        gan: the discriminator.
        features: the frozen network of the perceptual, style and distribution losses and of `gan.on_features`:
            "efficientnet-lite0" or "vgg19".
        features_weights: file of its weights; "vgg19" needs one, and "efficientnet-lite0" has a default.
        zoom: share of the images of which the frozen network, the texture loss and the discriminator see a half around
            a part of the hole, enlarged twice, and not the whole image.
        init: start from this model, for example to fine-tune it: the name of a bundled model, the folder of a
            saved model, or org/name on the Hub. Parts that it lacks (a coarse-only model has no refinement) keep
            random weights.
        steps: optimiser steps; the learning rate falls to 0 over them.
        batch: batch size, over all processes.
        accumulate: number of batches per step.
        optimiser: "adamw", or "muon" for `showface.training.muon.Muon`.
        lr: the peak learning rate.
        warmup: steps of linear warm-up of the learning rate.
        weight_decay: decoupled weight decay.
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
    zoom: float = 0.0
    init: str = ""
    steps: int = 100_000
    batch: int = 16
    accumulate: int = 1
    optimiser: str = "adamw"
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
        self.check()

    def check(self) -> None:
        """Raise ValueError if a setting is out of range; the message has its name, its value and what is wanted."""
        find_network(self.system)
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}")
        if self.optimiser not in ("adamw", "muon"):
            raise ValueError(f"optimiser must be 'adamw' or 'muon', got {self.optimiser!r}")
        for name in ("steps", "batch", "accumulate", "log_every", "sample_every", "save_every", "keep"):
            _check(name, getattr(self, name), "at least 1", lambda x: x >= 1)
        _check("gan.channels", self.gan.channels, "at least 1", lambda x: x >= 1)
        _check("gan.layers", self.gan.layers, "at least 1", lambda x: x >= 1)
        _check("gan.scales", self.gan.scales, "at least 1", lambda x: x >= 1)
        _check("gan.start", self.gan.start, "at least 0", lambda x: x >= 0)
        _check("gan.alone", self.gan.alone, "at least 0", lambda x: x >= 0)
        _check("gan.lr_scale", self.gan.lr_scale, "positive and finite", lambda x: 0 < x < math.inf)
        _check("gan.r1", self.gan.r1, "at least 0 and finite", lambda x: 0 <= x < math.inf)
        _check("lr", self.lr, "positive and finite", lambda x: 0 < x < math.inf)
        _check("warmup", self.warmup, "at least 0", lambda x: x >= 0)
        _check("weight_decay", self.weight_decay, "at least 0 and finite", lambda x: 0 <= x < math.inf)
        _check("clip", self.clip, "positive (inf turns it off)", lambda x: x > 0)
        _check("ema_decay", self.ema_decay, "at least 0 and below 1", lambda x: 0 <= x < 1)
        _check("seed", self.seed, "from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63)
        _check("zoom", self.zoom, "in [0, 1]", lambda x: 0 <= x <= 1)
        for field_ in fields(self.loss):
            weight = getattr(self.loss, field_.name)
            _check(f"loss.{field_.name}", weight, "at least 0 and finite", lambda x: 0 <= x < math.inf)
        if self.loss.feature_matching and not self.loss.adversarial:
            raise ValueError(
                f"loss.feature_matching needs a loss.adversarial above 0, got {self.loss.feature_matching} with 0"
            )
        if self.zoom and not (self.loss.compares_features or self.loss.texture or self.loss.adversarial):
            raise ValueError(
                f"zoom needs a loss of features, loss.texture or loss.adversarial, got {self.zoom} without any"
            )
        first = self.gan.start + self.gan.alone
        if self.loss.adversarial and first >= self.steps:
            raise ValueError(
                f"gan.start + gan.alone must be below steps ({self.steps}), got {first}: the adversarial loss would "
                "never be used"
            )
        if not any(self.loss.by_name().values()):
            raise ValueError("loss must have a weight above 0, got 0 for every loss")
        self._check_smallest_image()
        self.data.check()

    def _check_smallest_image(self) -> None:
        """The frozen network, and each scale of a discriminator, needs 32 pixels a side."""
        smallest = 0
        if self.loss.compares_features or self.loss.adversarial:
            smallest = 32
        if self.loss.adversarial and not self.gan.on_features:
            smallest = 32 * 2 ** (self.gan.scales - 1)
        if self.data.size < smallest:
            raise ValueError(
                f"data.size must be at least {smallest} for these losses and gan.scales, got {self.data.size}"
            )

    @property
    def step_images(self) -> int:
        """Images per step, over all processes."""
        return self.batch * self.accumulate

    def network(self) -> InpaintingNetwork:
        """The network to train, with random weights."""
        if self.system == MDRNets.system:
            return MDRNets(replace(self.model, image_size=self.data.size))
        size = self.baseline.image_size or self.data.size
        return BASELINES[self.system](replace(self.baseline, image_size=size))


def _check(name: str, value: Any, wanted: str, accepts: Callable[[Any], bool]) -> None:
    """Raise ValueError unless the value is accepted. NaN never is, since no comparison with it is true."""
    if not accepts(value):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def load_config(file: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read the defaults, then the YAML file or files in order, then overrides such as `data.size=128`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, or a value of the wrong type or range.
    """
    config = OmegaConf.structured(TrainingConfig)
    for part in (config.model, config.baseline, config.loss):  # frozen dataclasses are read-only by default
        OmegaConf.set_readonly(part, False)
    files = [] if file is None else [file] if isinstance(file, str | Path) else list(file)
    source = ""
    given: DictConfig | ListConfig = OmegaConf.create()
    try:
        for source, read in [*((str(x), _read) for x in files), *((x, _override) for x in overrides)]:
            given = read(source)
            config.merge_with(given)
        return cast(TrainingConfig, OmegaConf.to_object(config))
    except YAMLError as error:
        raise ValueError(f"bad training configuration: {source} is not YAML: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        # OmegaConf puts the name of the setting on a separate line.
        name = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        if name and "ListConfig" in reason:
            value = OmegaConf.select(given, name)
            example = f"[{value}]" if isinstance(value, str) else "[0.5,1]"
            reason = f"must be a list, such as {name}={example}, got {value!r}"
        raise ValueError(f"bad training configuration: {f'{name}: ' if name else ''}{reason}") from error


def config_text(config: TrainingConfig) -> str:
    """The whole configuration as YAML; `load_config` reads it back."""
    settings = OmegaConf.structured(config)
    try:
        return OmegaConf.to_yaml(settings)
    except UnicodeEncodeError:  # a folder's name is not UTF-8: libyaml can't write it, and PyYAML's own writer can
        return yaml.dump(OmegaConf.to_container(settings), Dumper=yaml.SafeDumper, sort_keys=False)


def _override(text: str) -> DictConfig | ListConfig:
    """The setting in `name=value`."""
    return OmegaConf.from_dotlist([text])


def _read(file: str) -> DictConfig | ListConfig:
    """The settings in a YAML file, also with names that are not UTF-8 as `config_text` writes them."""
    text = Path(file).read_text(encoding="utf-8")
    return OmegaConf.create(yaml.load(text, yaml.SafeLoader)) if r"\uDC" in text else OmegaConf.load(file)
