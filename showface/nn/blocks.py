"""Blocks that several networks use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activate(x: Tensor) -> Tensor:
    """A leaky ReLU. With a plain ReLU whole layers died, because known pixels need no correction."""
    return F.leaky_relu(x, 0.2)


class GatedConv2d(nn.Module):
    """A gated convolution: features times a sigmoid gate, both from one convolution.

    The gate lets a network treat hole and known pixels differently. Source: *ours* (the poster does not describe its
    coarse network).

    Maps (B, inputs, h, w) to (B, outputs, h/stride, w/stride), rounded up. An even kernel needs a stride above 1 and
    sizes that are multiples of it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, kernel: int = 3) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, 2 * outputs, kernel, stride, padding=padding, dilation=dilation)
        # Gates start near 0.5, so features start twice as large, to keep the scale of the input. Otherwise the signal
        # fades with depth and training starts slowly.
        std = (kernel**2 * inputs) ** -0.5
        nn.init.normal_(self.conv.weight[:outputs], std=2 * std)
        nn.init.normal_(self.conv.weight[outputs:], std=0.5 * std)

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.conv(x).chunk(2, dim=1)
        return features * gate.sigmoid()  # F.glu, whose backward takes twice as long on a CPU


class GatedResidual(nn.Module):
    """x + gated convolution of leaky_relu(x)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.gated = GatedConv2d(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gated(activate(x))


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions, each after a leaky ReLU. The second starts at 0: the block starts as x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(activate(self.first(activate(x))))


class ModulatedResidualBlock(ResidualBlock):
    """A residual block whose normalised input is scaled and shifted at each position, as predicted from a guide.

    `guide_channels` = 0 makes it a plain residual block. Source: injecting the features of the MREM is *stated*, the
    spatially-adaptive scale and shift are *ours*.
    """

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__(channels)
        self.modulation = nn.Conv2d(guide_channels, 2 * channels, 1) if guide_channels else None
        # Without normalisation, features and scales amplified each other and training diverged.
        self.norm = nn.GroupNorm(1, channels, affine=False)

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """(B, channels, h, w), and a guide (B, guide_channels, h, w), to (B, channels, h, w).

        Raises:
            ValueError: a block with `guide_channels` got no guide.
        """
        if self.modulation is None:
            return super().forward(x)
        if guide is None:
            raise ValueError(f"guide must be (B, {self.modulation.in_channels}, h, w) like x, got None")
        scale, shift = self.modulation(guide).chunk(2, dim=1)
        return x + self.second(activate(self.first(activate(self.norm(x) * (1 + scale) + shift))))


class ImageHead(nn.Module):
    """From features at stride 4 to a small correction of the full-size image, by pixel-shuffle. *Ours*.

    Each of the 16 pixels in a 4 x 4 block has its own channels, so the same pattern can appear in all blocks, and
    losses that reward detail cause it. Therefore low frequencies come from the mean over the block, interpolated, and
    only high frequencies from the channels of each pixel.
    """

    # Adam's step is about the learning rate for every weight, however small the gradient. Without this factor one step
    # changed the output, a sum over hundreds of weights, by more than the correction itself.
    scale = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3 * 16, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.3 * (9 * channels) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, h, w) -> (B, 3, 4h, 4w)
        places = self.scale * self.conv(activate(x))
        slow = F.avg_pool2d(places, 3, stride=1, padding=1, count_include_pad=False)
        mean = slow.unflatten(1, (3, 16)).mean(2)
        return F.pixel_shuffle(places - slow, 4) + upsample(mean, 4)


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """Bilinear upsampling by `factor`. Unlike a transposed convolution it leaves no checkerboard pattern."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (B, C, H, W) until both sizes are multiples of `multiple`."""
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def composite(image: Tensor, hole: Tensor, inside: Tensor) -> Tensor:
    """`image` where known, bit for bit, and `inside` in the hole."""
    return torch.where(hole > 0.5, inside.to(image.dtype), image)
