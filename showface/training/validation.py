"""The score of a network on faces that were put aside."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import default_collate

from showface.data import FaceFolder
from showface.losses import region_l1
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
        self.faces = FaceFolder(data.validation, whole, min_side=data.min_side, seed=seed)

    @torch.no_grad()
    def __call__(self, network: InpaintingNetwork, device: torch.device) -> dict[str, float]:
        """The scores of at most LIMIT images, for the log.

        `validation_hole` is the L1 on hole pixels, as the loss `hole`. `validation_psnr` is the PSNR of the whole image
        in dB. Both are means over the images. No random number of the run is drawn.

        Args:
            network: in eval mode, on the device.
        """
        losses, ratios = [], []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # some baselines draw samples
            for start in range(0, min(len(self.faces), LIMIT), BATCH):
                stop = min(start + BATCH, len(self.faces), LIMIT)
                batch: dict[str, Tensor] = default_collate([self.faces[index] for index in range(start, stop)])
                images, holes = (batch[name].to(device) for name in ("image", "hole"))
                results = network(images, holes).image.float()
                for one in zip(results, images, holes, strict=True):
                    result, image, hole = (x[None] for x in one)
                    losses.append(region_l1(result, image, hole))
                    error = torch.where(hole > 0, result - image, 0).square().mean().clamp(min=1e-10)
                    ratios.append(10 * torch.log10(4 / error))  # the peak of values in [-1, 1] is 2
        means = [float(torch.stack(scores).mean()) for scores in (losses, ratios)]
        return dict(zip(("validation_hole", "validation_psnr"), means, strict=True))
