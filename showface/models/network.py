"""The base class of every network that fills holes: what the trainer, saved files and inference rely on."""

import json
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from showface.files import write_atomically, write_text
from showface.losses import LossWeights
from showface.models.config import NetworkConfig
from showface.models.find import CONFIG_FILE, DIFFERENCE_FILE, WEIGHTS_FILE, find_detail, find_model
from showface.models.interpolation import read_weights
from showface.models.output import InpaintingOutput
from showface.models.stages import Stage
from showface.models.weights import UnreadableWeightsError, check_sizes, check_weights, weights_header

_MAX_CONFIG = 1 << 20  # bytes
DEFAULT_SYSTEM = "mdrnets"  # for folders whose config.json has no "system"

Network = TypeVar("Network", bound="InpaintingNetwork")


class InpaintingNetwork(nn.Module):
    """A network that fills holes. A subclass defines a name, a configuration, `forward` and its training losses.

    Class attributes:
        system: its name in training configurations and in saved folders.
        config_type: the type of `config`.
        stages: the stages of its training. Where there are any, `training_losses` also takes the name of one as
            `stage`. Empty means that the whole network is trained from the first to the last step.
    """

    stages: ClassVar[tuple[Stage, ...]] = ()
    system: ClassVar[str]
    config_type: ClassVar[type[NetworkConfig]]
    config: NetworkConfig

    def forward(self, image: Tensor, hole: Tensor) -> InpaintingOutput:
        """Inpaint images of any height and width.

        Args:
            image: (B, 3, H, W) floating point in [-1, 1]; pixels under the hole are ignored.
            hole: (B, 1, H, W), 1 = corrupted, 0 = known.

        Raises:
            TypeError, ValueError: a wrong dtype or shape.
        """
        raise NotImplementedError

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        """The output for a batch and its losses by name, each 0-d and unweighted.

        Args:
            image: (B, 3, H, W) in [-1, 1], uncorrupted; H, W multiples of 16.
            hole: (B, 1, H, W), 1 = corrupted.
            labels: (B, H, W) int64 parsing, -1 where unknown.
            weights: a loss whose weight is 0 may be left out. They are applied later, by `weighted_sum` with
                `loss_weights`.
        """
        raise NotImplementedError

    def loss_weights(self, weights: LossWeights) -> dict[str, float]:
        """The weight of each loss of `training_losses` by name; subclasses add those of losses that only they have."""
        return weights.by_name()

    def untrained(self, weights: LossWeights) -> list[nn.Module]:
        """Parts that no loss trains with these weights. The trainer freezes them: DDP needs all other gradients."""
        return []

    def update_memory(self) -> None:
        """Update state that is not trained by gradients. The trainer calls it once after each batch."""

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made if needed, each file atomically.

        Args:
            dtype: convert floating-point weights to this dtype, for example torch.float16 for half the size.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (x.to(dtype) if dtype and x.is_floating_point() else x).detach().cpu().contiguous()
            for name, x in self.state_dict().items()
        }

        def write(path: Path) -> None:
            save_file(state, path, metadata={"format": "pt"})
            # It belongs to the weights that are replaced next. If the new ones can't be written, it stays.
            (folder / DIFFERENCE_FILE).unlink(missing_ok=True)

        write_atomically(folder / WEIGHTS_FILE, write)
        values = {"system": self.system, **self.config.to_dict()}
        write_text(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls: type[Network],
        folder: str | PathLike[str] = "default",
        *,
        revision: str | None = None,
        detail: float | None = None,
    ) -> Network:
        """Load a saved model, in eval mode and float32, on the CPU.

        Args:
            folder: the name of a bundled model, a key of `BUNDLED`; a folder that `save_pretrained` wrote; or
                `org/name` on the Hugging Face Hub, which needs the extra `hub`. Pass `Path(name)` for a folder that has
                the name of a bundled model.
            revision: branch, tag or commit of a model on the Hub.
            detail: 0 = smooth to 1 = sharp, for a model with a `difference.safetensors`: see
                `showface.models.interpolation`. By default what its configuration says. "psnr" is "default" with 0.

        Raises:
            FileNotFoundError: there is no such model, or one of its two files is missing.
            OSError: the model can't be fetched from the Hub, as `showface.models.find.find_model`.
            ValueError: the configuration is invalid or belongs to another system, the weights don't fit it, or
                `detail` is out of range or can't be chosen for this model.
        """
        detail = find_detail(folder, detail)
        folder = find_model(folder, revision)
        usual = saved_detail(folder)
        if detail is not None:
            check_detail(detail, folder, usual)
        config = cls.saved_config(folder)
        try:
            header = weights_header(folder / WEIGHTS_FILE)
            check_sizes(config, header, WEIGHTS_FILE)
        except UnreadableWeightsError:
            raise
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of {cls.__name__}: {error}") from error
        try:
            with torch.device("meta"):
                check_weights(cls(config).state_dict(), header)
            model = cls(config)
            model.load_state_dict(read_weights(folder, float((usual or 0.0) if detail is None else detail)))
        except UnreadableWeightsError:
            raise
        except Exception as error:  # safetensors and torch raise different exceptions
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its configuration: {error}") from error
        return model.eval()

    @classmethod
    def saved_config(cls, folder: Path) -> NetworkConfig:
        """The configuration of the model in a folder. Raises ValueError for a broken one, or one of another system."""
        try:
            values = _read_config(folder)
            system = values.pop("system", DEFAULT_SYSTEM)
            if system != cls.system:
                raise ValueError(f"its system is {system!r}, which showface.load_model loads")
            values.pop("detail", None)
            return cls.config_type.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of {cls.__name__}: {error}") from error


def saved_system(folder: Path) -> str:
    """The system of the model in a folder. Raises ValueError for a broken configuration."""
    try:
        return str(_read_config(folder).get("system", DEFAULT_SYSTEM))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of a model: {error}") from error


def saved_detail(folder: Path) -> float | None:
    """The usual `detail` of the model in a folder, 1 where its configuration gives none; None if it has no choice.

    Raises:
        ValueError: a broken configuration, or a value that is not in [0, 1].
    """
    if not (folder / DIFFERENCE_FILE).is_file():
        return None
    try:
        usual = _read_config(folder).get("detail", 1.0)
        _check_range(usual)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of a model: {error}") from error
    return float(usual)


def check_detail(detail: float, model: object, usual: float | None) -> None:
    """Raise ValueError if `detail` is out of range, or if a model has no choice of it: its `usual` one is None."""
    _check_range(detail)
    if usual is None:
        raise ValueError(f"detail can't be chosen for {model}, which has no {DIFFERENCE_FILE}")


def _check_range(detail: object) -> None:
    if isinstance(detail, bool) or not isinstance(detail, Real) or not 0 <= float(detail) <= 1:
        raise ValueError(f"detail must be a number from 0 (smooth) to 1 (sharp), got {detail!r}")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if file.stat().st_size > _MAX_CONFIG:
        raise ValueError(f"it has more than {_MAX_CONFIG:,} bytes")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it must be a JSON object")
    return values


def check_inputs(image: Tensor, hole: Tensor) -> None:
    """Raise TypeError or ValueError if `InpaintingNetwork.forward` can't take this image and hole."""
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point in [-1, 1], got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"image must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if hole.shape != (image.shape[0], 1, *image.shape[2:]):
        expected = (image.shape[0], 1, *image.shape[2:])
        raise ValueError(f"hole must have shape {expected} to match image, got {tuple(hole.shape)}")
    if hole.device != image.device:
        raise ValueError(f"hole must be on {image.device} like image, got {hole.device}")
