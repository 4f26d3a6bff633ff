"""Losses between features: of a frozen network (perceptual, style, distribution), and of random filters (texture)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from showface.losses import LossWeights, image_mean
from showface.nn.tokens import pool_hole

FILTERS = 8  # of the texture loss
SMALLEST_DETAIL = 0.01  # a target's mean response to a filter that counts as nothing, in units of images in [-1, 1]


def feature_losses(
    result: Sequence[Tensor], target: Sequence[Tensor], hole: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """The losses `perceptual`, `style` and `distribution`, each 0-d float32; those without a weight are left out.

    Each is a mean over the feature maps. Only `distribution` is of the hole alone.

    Args:
        result, target: the feature maps (B, C, h, w) of a filled image and of the photo, such as those of
            `showface.training.features.FrozenFeatures`. The target gets no gradient.
        hole: (B, 1, H, W), 1 = corrupted.

    Raises:
        ValueError: different numbers or shapes of maps.
    """
    shapes = [[tuple(x.shape) for x in maps] for maps in (result, target)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"result and target differ in shape: {shapes[0]} and {shapes[1]}")
    pairs = [(x, y.detach()) for x, y in zip(result, target, strict=True)]
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


def texture_distance(result: Tensor, target: Tensor, hole: Tensor) -> Tensor:
    """How far the fine detail in the hole is from the photo's, whatever its place, 0-d float32.

    Images are compared at full and at half size. Each is filtered with 3 x 3 filters that a flat colour gives 0, with
    random weights of all colours. The loss is `distribution_distance` of the filtered images, relative to what the
    target has: 1 minus the sharpness of a fill that is blurred evenly. *Ours*; random filters of patches are as in
    Elnekave & Weiss, *Generating Natural Images with Direct Patch Distributions Matching*, 2022.

    Args:
        result, target: (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 = corrupted.
    """
    directions = torch.eye(FILTERS, device=result.device)
    distances = []
    with torch.autocast(result.device.type, enabled=False):
        images, hole = torch.cat([result.float(), target.float()]), hole.float()
        for scale in range(2):
            if scale:
                images, hole = F.avg_pool2d(images, 2), pool_hole(hole, *(side // 2 for side in hole.shape[2:]))
            filters = torch.randn(FILTERS, 3, 3, 3, device=images.device)
            filters = filters - filters.mean((2, 3), keepdim=True)
            filters = F.normalize(filters.flatten(1)).view_as(filters)
            # Every second position, to save time: the images are shifted from step to step.
            x, y = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), filters, stride=2).chunk(2)
            covered = pool_hole(hole, *x.shape[2:])
            size = (y.abs() * covered).sum((2, 3), keepdim=True) / covered.sum((2, 3), keepdim=True).clamp(min=1)
            size = size.detach() + SMALLEST_DETAIL
            distances.append(distribution_distance(x / size, y / size, covered, directions))
    return torch.stack(distances).mean()


def random_directions(features: Tensor) -> Tensor:
    """As many random directions as features (B, C, h, w) have channels: (C, C) float32, rows of norm 1."""
    channels = features.shape[1]
    return F.normalize(torch.randn(channels, channels, device=features.device), dim=1)
