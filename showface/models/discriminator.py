"""The discriminators of adversarial training."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from showface.nn.blocks import activate
from showface.nn.tokens import pool_hole


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        # Without this, autocast would estimate the spectral norm in half precision.
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PatchDiscriminator(nn.Module):
    """Classifies each patch of an image as real or filled in, given the hole.

    Convolutions with stride 2, kernel 5 and leaky ReLU, then one convolution to a logit. Widths are `channels` times
    1, 2, 4, 4, ... With 4 layers the receptive field of a logit is 93 x 93 pixels. Spectral normalisation (Miyato et
    al., 2018) is of the weights as a matrix (outputs, inputs * kernel²).

    Source: SN-PatchGAN (Yu et al., *Free-Form Image Inpainting with Gated Convolution*, 2019), which has 6 layers and
    uses the last layer's features as logits. Fewer layers, for smaller images, and one logit per patch are *ours*.

    Args:
        channels: output width of the first convolution.
        layers: number of convolutions with stride 2.
        normalise: whether all convolutions have spectral normalisation. Without it, train with the penalty
            `showface.training.gan.gradient_penalty`.

    Raises:
        ValueError: `channels` or `layers` below 1.
    """

    def __init__(self, channels: int = 64, layers: int = 4, normalise: bool = True) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"a discriminator needs at least one channel and one layer, got {channels} and {layers}")
        widths = [4, *(channels * min(2**layer, 4) for layer in range(layers))]
        convs = [_Conv2d(widths[i], widths[i + 1], 5, stride=2, padding=2) for i in range(layers)]
        logits = _Conv2d(widths[-1], 1, 3, padding=1)
        self.convs = nn.ModuleList(spectral_norm(conv) if normalise else conv for conv in convs)
        self.logits = spectral_norm(logits) if normalise else logits

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
        return self.features(image, hole)[-1]

    def features(self, image: Tensor, hole: Tensor) -> list[Tensor]:
        """The features after each convolution, the finest first, and last the logits; arguments as `forward`."""
        shape = tuple(image.shape)
        if image.ndim != 4 or shape[1] != 3 or min(shape[2:]) < 32 or hole.shape != (shape[0], 1, *shape[2:]):
            raise ValueError(
                f"images must be (B, 3, H, W) with H, W at least 32, and holes (B, 1, H, W), got {shape} and "
                f"{tuple(hole.shape)}"
            )
        x = torch.cat([image, hole], dim=1)
        features = []
        for conv in self.convs:
            x = activate(conv(x))
            features.append(x)
        return [*features, self.logits(x)]


class FeatureDiscriminator(nn.Module):
    """Classifies each place of a frozen network's feature maps as real or filled in, given the hole.

    Each feature map has a head of its own: two convolutions with kernel 3 and leaky ReLU, then one with kernel 1 to a
    logit. The frozen network knows what images look like, so the heads learn from few images to tell a fill from a
    photo. Its weights are no parameters of this module, and not in its state dict.

    Source: Sauer et al., *Projected GANs Converge Faster*, 2021. Heads without that paper's random projections between
    the scales, and the hole, are *ours*.

    Args:
        network: gives a list of feature maps (B, C, h, w) of images (B, 3, H, W) in [-1, 1], such as
            `showface.training.features.FrozenFeatures`.
        channels: width of a head, at most twice the channels of its feature map.
        normalise: as `PatchDiscriminator`.

    Raises:
        ValueError: `channels` below 1.
    """

    def __init__(self, network: nn.Module, channels: int = 64, normalise: bool = True) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"a discriminator needs at least one channel, got {channels}")
        self.network = network
        device = next(network.buffers()).device
        with torch.no_grad():
            maps = [x.shape[1] for x in network(torch.zeros(1, 3, 32, 32, device=device))]
        self.heads = nn.ModuleList(_head(width, min(channels, 2 * width), normalise).to(device) for width in maps)

    def forward(self, image: Tensor, hole: Tensor, maps: list[Tensor] | None = None) -> list[Tensor]:
        """Logits (B, 1, h, w) for each feature map, the largest first; other arguments as `PatchDiscriminator.forward`.

        `maps` is what the network gives of the image, if that is computed already.
        """
        return [features[-1] for features in self.features(image, hole, maps)]

    def features(self, image: Tensor, hole: Tensor, maps: list[Tensor] | None = None) -> list[list[Tensor]]:
        """For each feature map the features after each convolution of its head, last the logits; see `forward`."""
        found = []
        for x, head in zip(self.network(image) if maps is None else maps, self.heads, strict=True):
            x = torch.cat([x, pool_hole(hole, *x.shape[2:]).to(x.dtype)], dim=1)
            steps = []
            for conv in cast(nn.ModuleList, head)[:-1]:
                x = activate(conv(x))
                steps.append(x)
            found.append([*steps, cast(nn.ModuleList, head)[-1](x)])
        return found


def _head(inputs: int, channels: int, normalise: bool) -> nn.ModuleList:
    convs = (_Conv2d(inputs + 1, channels, 3, padding=1), _Conv2d(channels, channels, 3, padding=1))
    return nn.ModuleList(spectral_norm(x) if normalise else x for x in (*convs, _Conv2d(channels, 1, 1)))


class MultiScaleDiscriminator(nn.Module):
    """Several `PatchDiscriminator`s. Each further one sees the image and the hole at half the size of the one before.

    A logit of the second one sees twice as far, 186 x 186 pixels with 4 layers: both eyes of an aligned face of 256.

    Source: Wang et al., *High-Resolution Image Synthesis with Conditional GANs*, 2018.

    Args:
        channels, layers, normalise: as `PatchDiscriminator`.
        scales: number of discriminators.

    Raises:
        ValueError: an argument below 1.
    """

    def __init__(self, channels: int = 64, layers: int = 4, scales: int = 1, normalise: bool = True) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"need at least one scale, got {scales}")
        self.scales = nn.ModuleList(PatchDiscriminator(channels, layers, normalise) for _ in range(scales))

    def forward(self, image: Tensor, hole: Tensor, maps: object = None) -> list[Tensor]:
        """The logits of each discriminator, the finest scale first; arguments as `PatchDiscriminator.forward`.

        The image must have at least 32 pixels a side at the coarsest scale. `maps` is for `FeatureDiscriminator` alone.
        """
        return [features[-1] for features in self.features(image, hole)]

    def features(self, image: Tensor, hole: Tensor, maps: object = None) -> list[list[Tensor]]:
        """`PatchDiscriminator.features` of each discriminator, the finest scale first."""
        features = []
        for number, discriminator in enumerate(self.scales):
            if number:
                image, hole = F.avg_pool2d(image, 2), F.avg_pool2d(hole, 2)
            features.append(cast(PatchDiscriminator, discriminator).features(image, hole))
        return features


Discriminator = MultiScaleDiscriminator | FeatureDiscriminator
