"""What every system is to the trainer, to files and to inference: one base class and its output."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from showface.files import write_atomically, write_text
from showface.losses import LossWeights
from showface.models.config import NetworkConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DEFAULT_SYSTEM = "mdrnets"  # of a folder whose configuration names none
BUNDLED = {name: Path(__file__).parent.parent / "assets" / name for name in ("default", "psnr")}

Network = TypeVar("Network", bound="InpaintingNetwork")


@dataclass
class InpaintingOutput:
    """What one pass gives; a network without a coarse stage repeats its result.

    Attributes:
        image: (B, 3, H, W), the result; known pixels are those of the input, bit for bit.
        coarse: (B, 3, H, W), the same of the coarse stage.
        raw_image, raw_coarse: (B, 3, H, W), both before known pixels are put back; losses look at these.
    """

    image: Tensor
    coarse: Tensor
    raw_image: Tensor
    raw_coarse: Tensor


class InpaintingNetwork(nn.Module):
    """A network that fills holes. A system is a subclass that has a name, a configuration, a pass and its losses.

    Class attributes:
        system: its name, in configurations of training and in saved folders.
        config_type: the type of `config`.
    """

    system: ClassVar[str]
    config_type: ClassVar[type[NetworkConfig]]
    config: NetworkConfig

    def forward(self, image: Tensor, hole: Tensor) -> InpaintingOutput:
        """Inpaint images of any height and width.

        Args:
            image: (B, 3, H, W) floating point in [-1, 1]; what lies under the hole is ignored.
            hole: (B, 1, H, W), 1 = corrupted, 0 = known.

        Raises:
            TypeError, ValueError: a wrong dtype or shape.
        """
        raise NotImplementedError

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        """The output for a batch, every loss, unweighted, and their weighted sum `total`.

        Args:
            image: (B, 3, H, W) in [-1, 1], uncorrupted; H, W multiples of 16.
            hole: (B, 1, H, W), 1 = corrupted.
            labels: (B, H, W) int64 parsing, -1 where unknown.
            weights: of the losses that systems share; a system's own have weights of their own.
        """
        raise NotImplementedError

    def after_batch(self) -> None:
        """Called once after each batch of the training, for a state that no gradient moves."""

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made if needed, each file atomically.

        Args:
            dtype: convert floating-point weights, say to torch.float16 for half the size.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (x.to(dtype) if dtype and x.is_floating_point() else x).detach().cpu().contiguous()
            for name, x in self.state_dict().items()
        }
        write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(state, path, metadata={"format": "pt"}))
        values = {"system": self.system, **self.config.to_dict()}
        write_text(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls: type[Network], folder: str | Path = "default") -> Network:
        """Load a saved model, in eval mode and float32, on the CPU.

        Args:
            folder: as `save_pretrained` wrote it, or the name of a bundled model, a key of `BUNDLED` (a folder of that
                name: `Path(name)`).

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: the configuration is one of another system or of none, or the weights don't fit it.
        """
        folder = _find(folder)
        try:
            values = _read_config(folder)
            system = values.pop("system", DEFAULT_SYSTEM)
            if system != cls.system:
                raise ValueError(f"its system is {system!r}, which showface.load_model loads")
            config = cls.config_type.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of {cls.__name__}: {error}") from error
        model = cls(config)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except Exception as error:  # safetensors and torch each have their own kind
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its configuration: {error}") from error
        return model.eval()


def saved_system(folder: str | Path) -> str:
    """The name of the system that a folder holds. Raises as `InpaintingNetwork.from_pretrained`."""
    folder = _find(folder)
    try:
        return str(_read_config(folder).get("system", DEFAULT_SYSTEM))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of a model: {error}") from error


def _find(model: str | Path) -> Path:
    """The folder of a bundled model's name, or the given one, if it has the two files."""
    folder = BUNDLED[model] if isinstance(model, str) and model in BUNDLED else Path(model)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            wanted = f"a model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or one of {', '.join(BUNDLED)}"
            raise FileNotFoundError(f"no {name} in {folder}: {wanted}")
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / CONFIG_FILE).read_text())
    if not isinstance(values, dict):
        raise ValueError("it holds no settings by name")
    return values


def check_inputs(image: Tensor, hole: Tensor) -> None:
    """Raise TypeError or ValueError unless these are an image and a hole as `InpaintingNetwork.forward` takes them."""
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point in [-1, 1], got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"image must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if hole.shape != (image.shape[0], 1, *image.shape[2:]):
        expected = (image.shape[0], 1, *image.shape[2:])
        raise ValueError(f"hole must have shape {expected} to go with image, got {tuple(hole.shape)}")
    if hole.device != image.device:
        raise ValueError(f"hole must be on {image.device} like image, got {hole.device}")
