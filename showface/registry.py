"""Networks by name: MDRNets and the trained baselines."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from showface import baselines
from showface.distributed import check_device, device_errors
from showface.models import BUNDLED, InpaintingNetwork, MDRNets
from showface.models.network import Network, saved_system
from showface.nn import channels_last

NETWORKS: dict[str, type[InpaintingNetwork]] = {MDRNets.system: MDRNets, **baselines.NETWORKS}
_BUNDLED = {
    "default": "sharp: trained with perceptual and adversarial losses to look realistic",
    "psnr": "smooth: trained for the closest pixels",
}
_BUNDLED_LICENCE = "for research only, as its training data"


@dataclass(frozen=True)
class About:
    """What people should know of a saved model: its name, what it does, and what its weights may be used for."""

    name: str
    description: str
    licence: str


def about_model(folder: str | PathLike[str]) -> About:
    """What is known of a saved model, by its folder or bundled name.

    Raises:
        FileNotFoundError, ValueError: as for `load_model`.
    """
    if isinstance(folder, str) and folder in BUNDLED:
        return About(folder, _BUNDLED[folder], _BUNDLED_LICENCE)
    folder = Path(folder)
    return About(folder.resolve().name, f"a saved {saved_system(folder)} model", "not stated")


def find_network(name: str) -> type[InpaintingNetwork]:
    """Return the class of a network, such as "mdrnets" or "unet". Raises ValueError for an unknown name."""
    if name not in NETWORKS:
        raise ValueError(f"unknown system {name!r}: choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def move_model(model: Network, device: str | torch.device) -> Network:
    """Move a network. Raises ValueError for a device that can't be used, or that holds no values (meta)."""
    check_model_device(device)
    with device_errors(device):
        return model.to(device)


def check_model_device(device: str | torch.device) -> None:
    """Raise ValueError if no network can run on a device."""
    check_device(device)
    if torch.device(device).type == "meta":
        raise ValueError("device meta can't be used: its tensors hold no values")


def load_model(folder: str | PathLike[str] = "default", device: str | torch.device = "cpu") -> InpaintingNetwork:
    """Load a saved model of any kind, in eval mode, float32 and channels-last memory.

        model = showface.load_model("runs/unet/model", device="cuda")
        restored = showface.inpaint("photo.jpg", "mask.png", model=model)

    Args:
        folder: a folder written by `save_pretrained`, or the name of a bundled model, "default" or "psnr".
        device: where the model runs.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: an unknown network, a broken configuration, weights that don't fit it, or a device that can't be
            used.
    """
    folder = folder if isinstance(folder, str) else Path(folder)
    check_model_device(device)  # before a large model is read
    return channels_last(move_model(find_network(saved_system(folder)).from_pretrained(folder), device))
