"""Networks by name: MDRNets and the trained baselines."""

from pathlib import Path

import torch

from showface import baselines
from showface.distributed import device_errors
from showface.models import InpaintingNetwork, MDRNets
from showface.models.network import saved_system
from showface.nn import channels_last

NETWORKS: dict[str, type[InpaintingNetwork]] = {MDRNets.system: MDRNets, **baselines.NETWORKS}


def find_network(name: str) -> type[InpaintingNetwork]:
    """Return the class of a network, such as "mdrnets" or "unet". Raises ValueError for an unknown name."""
    if name not in NETWORKS:
        raise ValueError(f"unknown system {name!r}: choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def load_model(folder: str | Path = "default", device: str | torch.device = "cpu") -> InpaintingNetwork:
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
    model = find_network(saved_system(folder)).from_pretrained(folder)
    with device_errors(device):
        return channels_last(model.to(device))
