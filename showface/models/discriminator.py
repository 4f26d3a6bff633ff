"""The discriminator of adversarial training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from showface.nn.blocks import activate


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        # Without this, autocast would estimate the spectral norm in half precision.
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PatchDiscriminator(nn.Module):
    """Classifies each patch of an image as real or filled in, given the hole.

    Convolutions with stride 2, kernel 5 and leaky ReLU, then one convolution to a logit. All have spectral
    normalisation (Miyato et al., 2018) of their weights as a matrix (outputs, inputs * kernel²). Widths are `channels`
    times 1, 2, 4, 4, ... With 4 layers the receptive field of a logit is 93 x 93 pixels.

    Source: SN-PatchGAN (Yu et al., *Free-Form Image Inpainting with Gated Convolution*, 2019), which has 6 layers and
    uses the last layer's features as logits. Fewer layers, for smaller images, and one logit per patch are *ours*.

    Args:
        channels: output width of the first convolution.
        layers: number of convolutions with stride 2.

    Raises:
        ValueError: `channels` or `layers` below 1.
    """

    def __init__(self, channels: int = 64, layers: int = 4) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"a discriminator needs at least one channel and one layer, got {channels} and {layers}")
        widths = [4, *(channels * min(2**layer, 4) for layer in range(layers))]
        self.convs = nn.ModuleList(
            spectral_norm(_Conv2d(widths[i], widths[i + 1], 5, stride=2, padding=2)) for i in range(layers)
        )
        self.logits = spectral_norm(_Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """One logit per patch, positive for real.

        In training mode, every call runs one step of the power iteration for the spectral norms.

        Args:
            image: (B, 3, H, W) in [-1, 1], real or filled in; H, W at least 32.
            hole: (B, 1, H, W), 1 = filled in; real images get the hole of the filled image that they are compared with.

        Returns:
            (B, 1, h, w) with h, w = H, W / 2^layers, rounded up.

        Raises:
            ValueError: a wrong shape.
        """
        shape = tuple(image.shape)
        if image.ndim != 4 or shape[1] != 3 or min(shape[2:]) < 32 or hole.shape != (shape[0], 1, *shape[2:]):
            raise ValueError(
                f"images must be (B, 3, H, W) with H, W at least 32, and holes (B, 1, H, W), got {shape} and "
                f"{tuple(hole.shape)}"
            )
        x = torch.cat([image, hole], dim=1)
        for conv in self.convs:
            x = activate(conv(x))
        return self.logits(x)
