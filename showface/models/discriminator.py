"""The adversary of a network that fills holes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from showface.nn.blocks import activate


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the spectral norm would be estimated in half precision.
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PatchDiscriminator(nn.Module):
    """Says of every patch of an image whether it is real or filled in, knowing where the hole is.

    Convolutions of stride 2, kernel 5 and leaky ReLU, then one to a logit; all of them normalised by their spectral
    norm (Miyato et al., 2018), that of their weights as a matrix (outputs, inputs * kernel²). Widths are `channels`
    times 1, 2, 4, 4, ... With 4 layers a logit sees 93 x 93 pixels.

    Source: SN-PatchGAN (Yu et al., *Free-Form Image Inpainting with Gated Convolution*, 2019), which has 6 layers and
    takes the last one's features for logits. Fewer layers, for smaller images, and one logit a patch are *ours*.

    Args:
        channels: of the first convolution's output.
        layers: how many convolutions have a stride of 2.

    Raises:
        ValueError: `channels` or `layers` below 1.
    """

    def __init__(self, channels: int = 64, layers: int = 4) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"a discriminator has at least one channel and one layer, not {channels} and {layers}")
        widths = [4, *(channels * min(2**layer, 4) for layer in range(layers))]
        self.convs = nn.ModuleList(
            spectral_norm(_Conv2d(widths[i], widths[i + 1], 5, stride=2, padding=2)) for i in range(layers)
        )
        self.logits = spectral_norm(_Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """Logits of real images, above 0 for real.

        While training, every call takes one step towards the spectral norms.

        Args:
            image: (B, 3, H, W) in [-1, 1], real or filled in; H, W at least 32.
            hole: (B, 1, H, W), 1 = filled in; of a real image the one to tell it apart by.

        Returns:
            (B, 1, h, w) with h, w = H, W / 2^layers, rounded up.

        Raises:
            ValueError: shapes that don't fit.
        """
        shape = tuple(image.shape)
        if image.ndim != 4 or shape[1] != 3 or min(shape[2:]) < 32 or hole.shape != (shape[0], 1, *shape[2:]):
            raise ValueError(
                f"images are (B, 3, H, W) with H, W at least 32, and holes (B, 1, H, W), not {shape} and "
                f"{tuple(hole.shape)}"
            )
        x = torch.cat([image, hole], dim=1)
        for conv in self.convs:
            x = activate(conv(x))
        return self.logits(x)
