"""The encoder of MDRNets: features for the memory and for the masked correlations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.nn.blocks import ResidualBlock, activate, upsample


class Encoder(nn.Module):
    """Features at stride 4 of an image without holes, with context from stride 8. Source: *ours*.

    Args:
        channels: width C of the features.
        blocks: residual blocks at stride 8.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * 16, channels, 3, padding=1)
        self.block4 = ResidualBlock(channels)
        self.down8 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.blocks8 = nn.Sequential(*(ResidualBlock(2 * channels) for _ in range(blocks)))
        self.up4 = nn.Conv2d(2 * channels, channels, 1)
        # Each channel is normalised by itself. With one norm over all channels, a large common mean made all features
        # similar, and neither the memory nor the correlations could tell positions apart.
        # GroupNorm with one channel per group: torch's InstanceNorm does not keep the channels-last format.
        self.norm = nn.GroupNorm(channels, channels, affine=False)

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] and its hole (B, 1, H, W) -> (B, C, H/4, W/4).

        The hole marks the pixels that were filled in; it is all zeros for an uncorrupted image.
        """
        x4 = self.block4(self.enter(F.pixel_unshuffle(torch.cat([image, hole], dim=1), 4)))
        x8 = self.blocks8(self.down8(activate(x4)))
        features = x4 + upsample(self.up4(x8))
        # In float32: in bfloat16 the backward of this norm takes three times as long on a CPU.
        return self.norm(features.float()).to(features.dtype)
