"""Losses between the features of a frozen network: perceptual, style, and the distance of distributions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from showface.losses import LossWeights, image_mean
from showface.nn.tokens import pool_hole
from showface.training.features import FrozenFeatures


def feature_losses(
    features: FrozenFeatures,
    result: Tensor,
    target: Tensor,
    hole: Tensor,
    weights: LossWeights,
    maps: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The losses `perceptual`, `style` and `distribution`, each 0-d float32; those without a weight are left out.

    Each is a mean over the feature maps. Only `distribution` is of the hole alone.

    Args:
        result, target: (B, 3, H, W) in [-1, 1] with H, W at least 32. The target gets no gradient.
        hole: (B, 1, H, W), 1 = corrupted.
        maps: `features(result)`, if it is computed already.

    Raises:
        ValueError: wrong or different shapes.
    """
    if result.shape != target.shape:
        raise ValueError(f"result and target differ in shape: {tuple(result.shape)} and {tuple(target.shape)}")
    with torch.no_grad():
        wanted = features(target)
    pairs = list(zip(features(result) if maps is None else maps, wanted, strict=True))
    losses = {}
    if weights.perceptual:
        losses["perceptual"] = [F.l1_loss(x.float(), y.float()) for x, y in pairs]
    if weights.style:
        losses["style"] = [F.l1_loss(gram_matrix(x), gram_matrix(y)) for x, y in pairs]
    if weights.distribution:
        losses["distribution"] = [distribution_distance(x, y, hole, random_directions(x)) for x, y in pairs]
    return {name: torch.stack(values).mean() for name, values in losses.items()}


def gram_matrix(features: Tensor) -> Tensor:
    """Products of channels, summed over all positions: (B, C, h, w) -> (B, C, C) float32, F F^T / (C h w).

    Source: Gatys et al., 2016. float32 under autocast too: in half precision the sums lose precision or overflow.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = features.float().flatten(2)
        return x @ x.mT / (x.shape[1] * x.shape[2])


def distribution_distance(result: Tensor, target: Tensor, hole: Tensor, directions: Tensor) -> Tensor:
    """The sliced Wasserstein distance between two images' features in the hole, 0-d, float32 for half precision.

    The features of an image are projected onto each direction and sorted. The distance is the mean |difference| between
    the k-th number of the result and the k-th of the target, and of these distances the mean over the images. So detail
    must look like that of the photo, but may be at another place of the hole. A blurred fill has too few extreme
    features.

    Source: Heitz et al., *A Sliced Wasserstein Loss for Neural Texture Synthesis*, 2021, and Delbracio et al.,
    *Projected Distribution Loss for Image Enhancement*, 2021. The hole is *ours*.

    Args:
        result, target: features (B, C, h, w) in any floating dtype.
        hole: (B, 1, H, W), 1 = corrupted. Positions that it touches count. The distance of an empty hole is 0.
        directions: (D, C).

    Raises:
        ValueError: different shapes of result and target, or a hole of another batch. It is not broadcast.
    """
    if result.shape != target.shape:
        raise ValueError(f"target must be {tuple(result.shape)} like result, got {tuple(target.shape)}")
    if hole.dim() != 4 or hole.shape[:2] != (result.shape[0], 1):
        raise ValueError(f"hole must be ({result.shape[0]}, 1, H, W) to match result, got {tuple(hole.shape)}")
    with torch.autocast(result.device.type, enabled=False):
        touched = pool_hole(hole.float(), *result.shape[2:]).flatten(2) > 0.5
        dtype = torch.promote_types(result.dtype, torch.float32)

        def ordered(features: Tensor) -> Tensor:  # (B, D, h*w), with equal numbers in place of known positions
            projected = directions.to(dtype) @ features.to(dtype).flatten(2)
            return projected.masked_fill(~touched, torch.finfo(dtype).max).sort(2).values

        difference = ordered(result) - ordered(target)
        return image_mean(difference.abs().sum((1, 2)), len(directions) * touched.sum((1, 2)))


def random_directions(features: Tensor) -> Tensor:
    """As many random directions as features (B, C, h, w) have channels: (C, C) float32, rows of norm 1."""
    channels = features.shape[1]
    return F.normalize(torch.randn(channels, channels, device=features.device), dim=1)
