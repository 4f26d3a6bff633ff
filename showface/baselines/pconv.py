"""Partial convolutions (Liu et al., *Image Inpainting for Irregular Holes Using Partial Convolutions*, ECCV 2018).

NVIDIA claims patents on partial convolution: check this before any use beyond comparison.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import Baseline, BaselineConfig, count_strides

# Features (B, C, h, w) and their mask (B, 1, h, w): 1 = valid, 0 = still a hole.
Masked = tuple[Tensor, Tensor]


class PartialConv2d(nn.Module):
    """A convolution over the valid inputs only, divided by the valid fraction of its window.

    With the window's inputs x, their mask m and the weights W, b:

        y = W^T (x * m) * size(window) / sum(m) + b  and  m' = 1    where sum(m) > 0
        y = 0                                        and  m' = 0    elsewhere

    Padding counts as invalid.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, *inputs: Masked) -> Masked:
        """Convolve the concatenation of one or more features, each with its own mask.

        Returns:
            (B, outputs, h/stride, w/stride), and the updated mask (B, 1, h/stride, w/stride).
        """
        features = torch.cat([x * valid for x, valid in inputs], dim=1)
        # All channels of an input share a mask: weight the masks by width to get the mean over channels.
        parts = [valid * (x.shape[1] / features.shape[1]) for x, valid in inputs]
        fraction = torch.stack(parts).sum(0)  # (B, 1, h, w)
        mass = F.avg_pool2d(fraction, self.kernel, self.stride, self.kernel // 2)  # sum(m) / size(window)
        valid = (mass > 0).to(mass.dtype)
        return (self.conv(features) / mass.clamp_min(1e-6) + self.bias[:, None, None]) * valid, valid


class PartialEncoder(nn.Module):
    """Partial convolutions of stride 2 with ReLU, and batch norm after all but the first.

    Kernels are 7, 5, 5, then 3; widths 1, 2, 4, then 8 times `channels`.
    """

    def __init__(self, inputs: int, channels: int, strides: int) -> None:
        super().__init__()
        self.widths = [inputs, *(channels * min(2**i, 8) for i in range(strides))]
        self.convs = nn.ModuleList(
            PartialConv2d(self.widths[i], self.widths[i + 1], kernel, stride=2)
            for i, kernel in enumerate([7, 5, 5, *[3] * 5][:strides])
        )
        self.norms = nn.ModuleList([nn.Identity(), *map(nn.BatchNorm2d, self.widths[2:])])

    def forward(self, x: Tensor, valid: Tensor) -> list[Masked]:
        """(B, inputs, H, W) and (B, 1, H, W) -> the input, then the output of each convolution, all with masks."""
        levels = [(x, valid)]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x, valid = conv((x, valid))
            x = F.relu(norm(x))
            levels.append((x, valid))
        return levels


class PartialDecoder(nn.Module):
    """From the deepest features to full size: nearest upsampling, skip connections, partial 3x3 convolutions.

    All but the last convolution have batch norm and leaky ReLU.

    Args:
        widths: the `widths` of a `PartialEncoder`.
        outputs: channels at full size.
    """

    def __init__(self, widths: list[int], outputs: int) -> None:
        super().__init__()
        inside, skip = widths[:0:-1], widths[-2::-1]
        out = [*skip[:-1], outputs]
        self.convs = nn.ModuleList(PartialConv2d(a + b, c) for a, b, c in zip(inside, skip, out, strict=True))
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, out[:-1]))

    def forward(self, deepest: Masked, skips: list[Masked]) -> Tensor:
        """The deepest features, and the other levels of the encoder, largest first -> (B, outputs, H, W)."""
        x, valid = deepest
        for i, (conv, skip) in enumerate(zip(self.convs, reversed(skips), strict=True)):
            x, valid = conv((_twice(x), _twice(valid)), skip)
            if i < len(self.norms):
                x = F.leaky_relu(self.norms[i](x), 0.2)
        return x


class PConvUNet(Baseline):
    """The partial convolution U-Net: holes shrink from layer to layer as the mask is updated.

    Paper's size: `channels` 64, for images of 512 with eight strides of 2, down to 2x2; here there are as many strides
    as reduce `image_size` to 2x2. 25.8 M parameters by default, for images of 256.

    Simplifications: L1 only (no perceptual, style or total variation loss), and no second training phase with frozen
    batch norm in the encoder.
    """

    system = "pconv"
    paper_channels = 64

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        strides = count_strides(self.config.image_size, smallest=2)
        self.stride = 2**strides
        self.encoder = PartialEncoder(3, self.config.channels, strides)
        self.decoder = PartialDecoder(self.encoder.widths, 3)

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.encoder(image, 1 - hole)
        result = self.decoder(levels[-1], levels[:-1])
        return result, result


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
