"""Networks by name: MDRNets and the trained baselines."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
import yaml

from showface import baselines
from showface.distributed import check_device, device_errors
from showface.models import BUNDLED, InpaintingNetwork, MDRNets
from showface.models.find import CARD_FILE, find_detail, find_model
from showface.models.network import Network, saved_detail, saved_system
from showface.nn import channels_last

NETWORKS: dict[str, type[InpaintingNetwork]] = {MDRNets.system: MDRNets, **baselines.BASELINES}
_BUNDLED = {
    "default": "sharp: trained with perceptual and adversarial losses to look realistic",
    "psnr": "smooth: trained for the closest pixels",
}
_BUNDLED_LICENCE = "for research only, as its training data"
_MAX_CARD = 1 << 20  # bytes


@dataclass(frozen=True)
class About:
    """What is known of a saved model before it is loaded.

    Attributes:
        name, description, licence: its name, what it does, and what its weights may be used for.
        folder: where it is; a model on the Hub is looked up there once for all that follows.
        detail: the usual one; None if there is no choice, as of "psnr", which is "default" with 0.
        image_size: side in pixels of the images that it was trained on.
    """

    name: str
    description: str
    licence: str
    folder: Path
    detail: float | None
    image_size: int


def about_model(model: str | PathLike[str]) -> About:
    """What is known of a saved model, given as for `load_model`. Its model card, if it has one, states the licence.

    Raises:
        FileNotFoundError, ValueError, OSError: as for `load_model`.
    """
    folder = find_model(model)
    detail = saved_detail(folder) if find_detail(model) is None else None
    system = saved_system(folder)
    size = find_network(system).saved_config(folder).image_size
    if isinstance(model, str) and model in BUNDLED:
        return About(model, _BUNDLED[model], _BUNDLED_LICENCE, folder, detail, size)
    licence = stated_licence(folder) or "not stated"
    return About(model_name(model), f"a saved {system} model", licence, folder, detail, size)


def model_name(model: str | PathLike[str]) -> str:
    """The name of a folder or of "org/name"; for the folders `model` and `best` of a run, `run` and `run-best`."""
    path = Path(model).resolve()
    if path.name == "best":
        return f"{path.parent.name}-best"
    return path.parent.name if path.name == "model" else path.name


def stated_licence(folder: Path) -> str | None:
    """The licence that the header of a folder's model card states, such as "mit"; None without a card or a licence."""
    card = folder / CARD_FILE
    if not card.is_file() or card.stat().st_size > _MAX_CARD:
        return None
    _, opening, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    header, closing, _ = rest.partition("\n---")
    if not (opening and closing):
        return None
    try:
        values = yaml.safe_load(header)
    except Exception:  # PyYAML's constructors raise many kinds of errors, such as IndexError for `!!int ''`
        return None
    values = values if isinstance(values, dict) else {}
    licence = values.get("license_name") if values.get("license") == "other" else values.get("license")
    # A stranger's text is shown beside the model, so it is a short name or nothing.
    return licence if isinstance(licence, str) and re.fullmatch(r"[\w .+-]{1,60}", licence) else None


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


def load_model(
    folder: str | PathLike[str] = "default",
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    detail: float | None = None,
) -> InpaintingNetwork:
    """Load a saved model of any kind, in eval mode, float32 and channels-last memory.

        model = showface.load_model("runs/unet/model", device="cuda")
        model = showface.load_model("org/name", revision="v1")      # from the Hugging Face Hub
        model = showface.load_model(detail=0.5)                     # half-way between smooth and sharp
        restored = showface.inpaint("photo.jpg", "mask.png", model=model)

    Args:
        folder: the name of a bundled model, "default" or "psnr"; a folder written by `save_pretrained`; or `org/name`
            or `org/name@revision` on the Hugging Face Hub, which needs the extra `hub`. A folder that exists is taken
            before a name on the Hub.
        device: where the model runs.
        revision: branch, tag or commit of a model on the Hub.
        detail: 0 = smooth to 1 = sharp, for models that have both: the bundled one, and folders with a
            `difference.safetensors`. By default what the model's configuration says. "psnr" is "default" with 0.

    Raises:
        FileNotFoundError: there is no such model, or one of its two files is missing.
        OSError: the model can't be fetched from the Hub, as `showface.models.find.find_model`.
        ValueError: an unknown network, a broken configuration, weights that don't fit it, a `detail` that is out of
            range or can't be chosen, or a device that can't be used.
    """
    check_model_device(device)  # before a large model is read
    found = find_model(folder, revision)
    network = find_network(saved_system(found)).from_pretrained(found, detail=find_detail(folder, detail))
    return channels_last(move_model(network, device))
