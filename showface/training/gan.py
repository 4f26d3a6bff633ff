"""Hinge GAN losses (Lim & Ye, 2017; Miyato et al., 2018) and feature matching.

With a hole, all losses are means over the patches that it touches, a choice of *ours*. The other patches of a filled
image are real: the discriminator can't learn to call them fake, and they would make the loss depend on the size of the
hole. A patch is the area of one logit, H/h x W/w pixels, without the rest of its receptive field.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from showface.losses import batch_mean


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor], hole: Tensor | None = None) -> Tensor:
    """The mean of max(0, 1 - real) plus the mean of max(0, 1 + fake), 0-d float32. A mean over the scales.

    Args:
        real, fake: for each scale the logits (B, 1, h, w) of real and of filled images, in any floating dtype. Detach
            the filled images from the generator.
        hole: (B, 1, H, W), 1 = filled in. Only patches that the hole touches count; the loss of an empty hole is 0.
            With None, all patches count.
    """
    real_losses = [_mean(F.relu(1 - logits.float()), hole) for logits in real]
    return torch.stack(real_losses + [_mean(F.relu(1 + logits.float()), hole) for logits in fake]).sum() / len(fake)


def generator_loss(fake: Sequence[Tensor], hole: Tensor | None = None) -> Tensor:
    """The mean of -fake, 0-d float32; arguments as `discriminator_loss`."""
    return -torch.stack([_mean(logits.float(), hole) for logits in fake]).mean()


def feature_matching(
    fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]], hole: Tensor | None = None
) -> Tensor:
    """The mean |fake - real| between a discriminator's features, 0-d float32. A mean over the layers and the scales.

    Source: Wang et al., *High-Resolution Image Synthesis with Conditional GANs*, 2018. The hole is *ours*.

    Args:
        fake, real: for each scale and each layer the features (B, C, h, w) of filled and of real images, in any
            floating dtype, with the logits last. The logits are left out.
        hole: as `discriminator_loss`.
    """
    pairs = [pair for scale in zip(fake, real, strict=True) for pair in list(zip(*scale, strict=True))[:-1]]
    return torch.stack([_mean((a.float() - b.float()).abs().mean(1, keepdim=True), hole) for a, b in pairs]).mean()


def _mean(values: Tensor, hole: Tensor | None) -> Tensor:
    if hole is None:
        return values.mean()
    touched = F.adaptive_max_pool2d(hole.float(), values.shape[2:])
    return batch_mean((values * touched).sum(), touched.sum())
