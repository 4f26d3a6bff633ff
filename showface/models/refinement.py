"""Step 4 of MDRNets: the Guided Refinement Network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.nn.blocks import ImageHead, ModulatedResidualBlock, upsample


class RefinementNetwork(nn.Module):
    """An encoder-decoder (the GRN) that refines the coarse composite, guided by the enhanced features.

    The features are added after the first convolution and modulate every block. That features are injected after the
    MREM is *stated*; the network and the way of injecting are *ours*.

    Args:
        channels: width at stride 4; 2x and 4x that at strides 8 and 16.
        blocks: residual blocks at strides 4, 8 and 16; those at 4 and 8 come twice, down and up.
        guide_channels: width of the guiding features.
    """

    def __init__(self, channels: int, blocks: tuple[int, int, int], guide_channels: int) -> None:
        super().__init__()
        c1, c2, c3 = channels, 2 * channels, 4 * channels

        def stage(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(ModulatedResidualBlock(width, guide_channels) for _ in range(count))

        self.enter = nn.Conv2d(4 * 16, c1, 3, padding=1)
        # Modulation only scales and shifts features of the image. Without this direct path the guide had little effect.
        self.enter_guide = nn.Conv2d(guide_channels, c1, 1)
        self.encode4 = stage(c1, blocks[0])
        self.down8 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.encode8 = stage(c2, blocks[1])
        self.down16 = nn.Conv2d(c2, c3, 3, stride=2, padding=1)
        self.encode16 = stage(c3, blocks[2])
        self.up8 = nn.Conv2d(c3, c2, 1)
        self.decode8 = stage(c2, blocks[1])
        self.up4 = nn.Conv2d(c2, c1, 1)
        self.decode4 = stage(c1, blocks[0])
        self.to_image = ImageHead(c1)

    def forward(self, image: Tensor, hole: Tensor, guide: Tensor) -> Tensor:
        """The refined image.

        Args:
            image: (B, 3, H, W) in [-1, 1], the coarse composite; H, W multiples of 16.
            hole: (B, 1, H, W), 1 = corrupted.
            guide: (B, guide_channels, H/4, W/4).

        Returns:
            (B, 3, H, W).
        """
        guide8 = F.avg_pool2d(guide, 2)
        guide16 = F.avg_pool2d(guide8, 2)

        def run(blocks: nn.ModuleList, x: Tensor, guide: Tensor) -> Tensor:
            for block in blocks:
                x = block(x, guide)
            return x

        x4 = self.enter(F.pixel_unshuffle(torch.cat([image, hole], dim=1), 4)) + self.enter_guide(guide)
        x4 = run(self.encode4, x4, guide)
        x8 = run(self.encode8, self.down8(x4), guide8)
        x16 = run(self.encode16, self.down16(x8), guide16)
        y8 = run(self.decode8, x8 + upsample(self.up8(x16)), guide8)
        y4 = run(self.decode4, x4 + upsample(self.up4(y8)), guide)
        return image + self.to_image(y4)
