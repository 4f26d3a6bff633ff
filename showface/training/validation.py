"""The score of a network on faces that were put aside."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import default_collate

from showface.data import FaceFolder
from showface.models import InpaintingNetwork
from showface.training.config import DataConfig

LIMIT = 200  # images
BATCH = 8


class Validation:
    """Scores a network on faces that it was not trained on, always with the same crops and holes.

    Args:
        data: the folders are `data.validation`; of size, ratio, kind, components and `min_side` those of training.
        seed: of the holes.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: as `FaceFolder`.
    """

    def __init__(self, data: DataConfig, seed: int = 0) -> None:
        whole = replace(data.augmentation(), flip=False, colour=0.0, crop=(1.0, 1.0))
        # Scores are comparable only if these are the same.
        names = ("validation", "size", "min_side", "ratio", "kind", "components")
        self.settings = {name: getattr(data, name) for name in names}
        self.faces = FaceFolder(data.validation, whole, min_side=data.min_side, seed=seed)

    @torch.no_grad()
    def __call__(self, network: InpaintingNetwork, device: torch.device) -> dict[str, float]:
        """The scores of at most LIMIT images, for the log.

        `validation_hole` is the L1 on hole pixels, as the loss `hole`. `validation_psnr` is the PSNR of the whole image
        in dB. Both are means over the images. One process computes them alone.

        Args:
            network: in eval mode, on the device.
        """
        losses, ratios = [], []
        for start in range(0, min(len(self.faces), LIMIT), BATCH):
            stop = min(start + BATCH, len(self.faces), LIMIT)
            batch: dict[str, Tensor] = default_collate([self.faces[index] for index in range(start, stop)])
            images, holes = (batch[name].to(device) for name in ("image", "hole"))
            errors = (network(images, holes).image.float() - images) * holes
            count = errors[0].numel() * holes.mean((1, 2, 3))
            losses.append(errors.abs().sum((1, 2, 3)) / count.clamp(min=1))
            # The peak of values in [-1, 1] is 2.
            ratios.append(10 * torch.log10(4 / errors.square().mean((1, 2, 3)).clamp(min=1e-10)))
        return {
            "validation_hole": float(torch.cat(losses).mean()),
            "validation_psnr": float(torch.cat(ratios).mean()),
        }
