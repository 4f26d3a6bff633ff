"""Networks by name: MDRNets and the trained baselines."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
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


@contextmanager
def usable_device(device: str | torch.device) -> Iterator[None]:
    """Check a device, and turn torch's errors about it, within the context, into ValueError.

    Raises:
        ValueError: there is no such device, or it holds no values (meta).
    """
    with device_errors(device):
        if torch.device(device).type == "meta":
            raise ValueError("device meta can't be used: its tensors hold no values")
        torch.empty(1, device=device)
        yield


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
    with usable_device(device):  # before a large model is read
        pass
    model = find_network(saved_system(folder)).from_pretrained(folder)
    with usable_device(device):
        return channels_last(model.to(device))
