"""Step 1 of MDRNets: a coarse face and its parsing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.nn.blocks import GatedConv2d, GatedResidual, ImageHead, activate, upsample


class CoarseNetwork(nn.Module):
    """A gated encoder-decoder that takes the push-pull fill and the hole, corrects the fill and parses the face.

    The input is pixel-unshuffled to stride 4 and the output pixel-shuffled back, so no layer runs at full size.
    Source: the coarse face is *stated*, the network and the parsing logits are *ours*.

    Args:
        channels: width at stride 4; 2x and 3x that at strides 8 and 16.
        blocks: gated blocks at stride 16, with dilations 1, 2, 4, 8 in turn.
        regions: number K of parsing logits.
    """

    def __init__(self, channels: int, blocks: int, regions: int) -> None:
        super().__init__()
        c1, c2, c3 = channels, 2 * channels, 3 * channels
        self.enter = nn.Sequential(GatedConv2d(4 * 16, c1), GatedResidual(c1))
        self.down8 = nn.Sequential(GatedConv2d(c1, c2, stride=2), GatedResidual(c2))
        self.down16 = nn.Sequential(
            GatedConv2d(c2, c3, stride=2), *(GatedResidual(c3, dilation=2 ** (i % 4)) for i in range(blocks))
        )
        self.up8 = nn.Conv2d(c3, c2, 1)
        self.merge8 = nn.Sequential(GatedResidual(c2), GatedResidual(c2))
        self.up4 = nn.Conv2d(c2, c1, 1)
        self.merge4 = nn.Sequential(GatedResidual(c1), GatedResidual(c1))
        self.to_image = ImageHead(c1)
        self.to_parsing = nn.Conv2d(c1, regions, 1)

    def forward(self, fill: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse image and the parsing logits.

        Args:
            fill: (B, 3, H, W) in [-1, 1], the image with its hole filled smoothly; H, W multiples of 16.
            hole: (B, 1, H, W), 1 = corrupted.

        Returns:
            (B, 3, H, W), and (B, K, H/4, W/4).
        """
        x4 = self.enter(F.pixel_unshuffle(torch.cat([fill, hole], dim=1), 4))
        x8 = self.down8(x4)
        x16 = self.down16(x8)
        y8 = self.merge8(x8 + upsample(self.up8(x16)))
        y4 = self.merge4(x4 + upsample(self.up4(y8)))
        return fill + self.to_image(y4), self.to_parsing(activate(y4))
