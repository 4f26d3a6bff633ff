"""Hinge GAN losses (Lim & Ye, 2017; Miyato et al., 2018), feature matching, and a gradient penalty.

Each loss is first the mean over an image's patches that the hole touches, then the mean of these means over the images:
a choice of *ours*. The other patches of a filled image are real: the discriminator can't learn to call them fake, and
they would make the loss depend on the size of the hole. A patch is the area of one logit, H/h x W/w pixels, without the
rest of its receptive field.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.losses import image_mean
from showface.nn.tokens import pool_hole

# Steps from one gradient penalty to the next, to save time (Karras et al., *Analyzing and Improving the Image Quality
# of StyleGAN*, 2020). It is multiplied by this number.
PENALTY_EVERY = 8


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor], hole: Tensor) -> Tensor:
    """The mean of max(0, 1 - real) plus the mean of max(0, 1 + fake), 0-d float32. A mean over the scales.

    Args:
        real, fake: for each scale the logits (B, 1, h, w) of real and of filled images, in any floating dtype. Detach
            the filled images from the generator.
        hole: (B, 1, H, W), 1 = filled in. Only patches that the hole touches count; the loss of an empty hole is 0.
    """
    real_losses = [_mean(F.relu(1 - logits.float()), hole) for logits in real]
    return torch.stack(real_losses + [_mean(F.relu(1 + logits.float()), hole) for logits in fake]).sum() / len(fake)


def generator_loss(fake: Sequence[Tensor], hole: Tensor) -> Tensor:
    """The mean of -fake, 0-d float32; arguments as `discriminator_loss`."""
    return -torch.stack([_mean(logits.float(), hole) for logits in fake]).mean()


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]], hole: Tensor) -> Tensor:
    """The mean |fake - real| between a discriminator's features, 0-d float32. A mean over the layers and the scales.

    Source: Wang et al., *High-Resolution Image Synthesis with Conditional GANs*, 2018. The hole is *ours*.

    Args:
        fake, real: for each scale and each layer the features (B, C, h, w) of filled and of real images, in any
            floating dtype, with the logits last. The logits are left out.
        hole: as `discriminator_loss`.
    """
    pairs = [pair for scale in zip(fake, real, strict=True) for pair in list(zip(*scale, strict=True))[:-1]]
    return torch.stack([_mean((a.float() - b.float()).abs().mean(1, keepdim=True), hole) for a, b in pairs]).mean()


def gradient_penalty(discriminator: nn.Module, image: Tensor, hole: Tensor) -> Tensor:
    """The squared norm of the gradient of a real image's logits by its pixels, 0-d float32. A mean over the images.

    It keeps a discriminator without spectral normalisation from growing ever steeper. The logits of all patches that
    the hole touches are summed, and the mean over the scales is taken.

    Source: R1 of Mescheder et al., *Which Training Methods for GANs do actually Converge?*, 2018, on summed patches as
    in Suvorov et al., *Resolution-robust Large Mask Inpainting with Fourier Convolutions*, 2022. The hole is *ours*.

    Args:
        discriminator: gets the gradient of the penalty.
        image: (B, 3, H, W), real images in [-1, 1].
        hole: (B, 1, H, W), 1 = filled in, as in `discriminator_loss`; also the discriminator's input.
    """
    image = image.detach().requires_grad_()
    with torch.autocast(image.device.type, enabled=False):  # second derivatives of half precision are noise
        scales = discriminator(image, hole)
        score = torch.stack([(logits * pool_hole(hole, *logits.shape[2:])).sum() for logits in scales])
        (gradient,) = torch.autograd.grad(score.mean(), image, create_graph=True)
    return gradient.square().sum() / len(image)


class Seen(NamedTuple):
    """A batch of photos and their fills, as a discriminator sees them.

    Attributes:
        image, result: (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 = filled in.
        maps: the frozen network's feature maps of the image and of the result, if they are computed already.
    """

    image: Tensor
    result: Tensor
    hole: Tensor
    maps: tuple[list[Tensor], list[Tensor]] | None = None


def discriminator_objective(discriminator: nn.Module, seen: Seen, r1: float = 0.0) -> tuple[Tensor, Tensor]:
    """A discriminator's loss on photos and fills, and the loss plus `r1` times the gradient penalty; both 0-d.

    Args:
        discriminator: a `Discriminator`, or a module around one.
        seen: without a graph, so that the loss has no gradient for the generator.
        r1: weight of `gradient_penalty`; with 0 it is not computed.
    """
    image, result, hole, maps = seen
    both = None if maps is None else [torch.cat(pair) for pair in zip(*maps, strict=True)]
    logits = discriminator(torch.cat([image, result]), torch.cat([hole, hole]), both)
    real, fake = zip(*(scale.chunk(2) for scale in logits), strict=True)
    loss = discriminator_loss(real, fake, hole)
    return loss, loss + r1 * gradient_penalty(discriminator, image, hole) if r1 else loss


def _mean(values: Tensor, hole: Tensor) -> Tensor:
    touched = pool_hole(hole.float(), *values.shape[2:])
    return image_mean((values * touched).sum((1, 2, 3)), touched.sum((1, 2, 3)))
