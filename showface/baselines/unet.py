"""A plain U-Net, as a control: it has the cost, input and losses of MDRNets, but no memory, MREM or InCo²."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import Baseline, BaselineConfig
from showface.nn import ResidualBlock, push_pull_fill
from showface.nn.blocks import ImageHead, upsample


class UNet(Baseline):
    """Residual blocks at strides 4, 8 and 16 that correct the push-pull fill; no gates, attention or second stage.

    Source: *ours*. By default it has 10.4 M parameters and costs as much to run as MDRNets.
    """

    system = "unet"
    paper_channels = 80
    stride = 16

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        c1 = self.config.channels
        c2, c3 = 2 * c1, 4 * c1

        def blocks(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))

        self.enter = nn.Sequential(nn.Conv2d(4 * 16, c1, 3, padding=1), blocks(c1, 2))
        self.down8 = nn.Sequential(nn.Conv2d(c1, c2, 3, stride=2, padding=1), blocks(c2, 2))
        self.down16 = nn.Sequential(nn.Conv2d(c2, c3, 3, stride=2, padding=1), blocks(c3, 4))
        self.up8 = nn.Conv2d(c3, c2, 1)
        self.merge8 = blocks(c2, 2)
        self.up4 = nn.Conv2d(c2, c1, 1)
        self.merge4 = blocks(c1, 2)
        self.to_image = ImageHead(c1)

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        smooth = push_pull_fill(image, hole)
        x4 = self.enter(F.pixel_unshuffle(torch.cat([smooth, hole], dim=1), 4))
        x8 = self.down8(x4)
        y8 = self.merge8(x8 + upsample(self.up8(self.down16(x8))))
        y4 = self.merge4(x4 + upsample(self.up4(y8)))
        result = smooth + self.to_image(y4)
        return result, result
