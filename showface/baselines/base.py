"""The base class of the trained baselines: configuration, padding, blanking of the hole, and compositing."""

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from showface.losses import LossWeights, reconstruction_losses
from showface.models.config import NetworkConfig
from showface.models.network import InpaintingNetwork, check_inputs
from showface.models.output import InpaintingOutput
from showface.nn.blocks import composite, pad_to_multiple


@dataclass(frozen=True)
class BaselineConfig(NetworkConfig):
    """The size of a baseline.

    Attributes:
        channels: base width as the paper defines it; 0 for the paper's value.
        image_size: side in pixels of the training images; some baselines choose their number of strides by it. 0 means
            256, or in training the size of the training images.
    """

    channels: int = 0
    image_size: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int) and value >= 0):
                raise ValueError(f"{field.name} must be an integer from 0 upwards, got {value!r}")


class Baseline(InpaintingNetwork):
    """A baseline. Subclasses define `fill`, which gets padded images with zeros in their holes.

    Class attributes:
        paper_channels: the paper's base width.
        stride: images are padded to multiples of it.
    """

    config_type = BaselineConfig
    config: BaselineConfig
    paper_channels: ClassVar[int]
    stride: int

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__()
        config = config or BaselineConfig()
        self.config = replace(
            config, channels=config.channels or self.paper_channels, image_size=config.image_size or 256
        )

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """The result and the coarse image, both before known pixels are put back.

        Args:
            image: (B, 3, H, W) in [-1, 1], 0 in the hole; H, W multiples of `stride`.
            hole: (B, 1, H, W) of 0 and 1, 1 = corrupted, in the dtype of `image`.

        Returns:
            (B, 3, H, W) twice; the same tensor where there is no coarse stage.
        """
        raise NotImplementedError

    def forward(self, image: Tensor, hole: Tensor) -> InpaintingOutput:
        return self.finish(image, hole, *self.fill(*self.prepare(image, hole)))

    def prepare(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """Blank the hole, and pad image and hole, as `fill` requires."""
        check_inputs(image, hole)
        # Use `where` instead of a product, because a NaN in the hole times 0 is still NaN.
        visible = torch.where(hole > 0.5, 0, image)
        return pad_to_multiple(visible, self.stride), pad_to_multiple((hole > 0.5).to(image.dtype), self.stride)

    def finish(self, image: Tensor, hole: Tensor, raw_image: Tensor, raw_coarse: Tensor) -> InpaintingOutput:
        """Crop and composite the two results of `fill`."""
        height, width = image.shape[-2:]
        raw_image, raw_coarse = raw_image[..., :height, :width], raw_coarse[..., :height, :width]
        return InpaintingOutput(
            image=composite(image, hole, raw_image),
            coarse=composite(image, hole, raw_coarse),
            raw_image=raw_image,
            raw_coarse=raw_coarse,
        )

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        output = self(image, hole)
        return output, reconstruction_losses(output.raw_image, output.raw_coarse, image, hole)


def count_strides(image_size: int, smallest: int) -> int:
    """The number of strides of 2 that shrink an image to `smallest` pixels a side, clamped to 2 to 8."""
    return min(8, max(2, int(math.log2(image_size / smallest))))
