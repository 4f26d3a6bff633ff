"""Every system by its name: MDRNets and the baselines."""

from pathlib import Path

from showface.baselines import NETWORKS
from showface.models import InpaintingNetwork, MDRNets
from showface.models.network import saved_system

SYSTEMS: dict[str, type[InpaintingNetwork]] = {MDRNets.system: MDRNets, **NETWORKS}


def find_system(name: str) -> type[InpaintingNetwork]:
    """The class of a system. Raises ValueError for a name that none has."""
    if name not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}: choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def load_model(folder: str | Path = "default") -> InpaintingNetwork:
    """Whatever system a folder or a bundled model holds, in eval mode and float32, on the CPU.

        model = showface.load_model("runs/unet/model")
        restored = showface.inpaint("photo.jpg", "mask.png", model=model)

    Args:
        folder: as `save_pretrained` wrote it, or the name of a bundled model, "default" or "psnr".

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: an unknown system, a broken configuration, or weights that don't fit it.
    """
    return find_system(saved_system(folder)).from_pretrained(folder)
