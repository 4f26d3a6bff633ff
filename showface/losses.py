"""Losses that several networks share, and their weights. Every loss is unweighted; `weighted_sum` applies the weights.

The losses of MDRNets are in `showface.models.losses`, those between features in
`showface.training.feature_losses`, those of a GAN in `showface.training.gan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch.nn.functional as F
from torch import Tensor, distributed

from showface.distributed import world_size


@dataclass(frozen=True)
class LossWeights:
    """The weight of each loss in the total; 0 leaves it out.

    `coarse` scales two losses: the coarse image has an L1 loss on hole pixels (`coarse_hole` in the log) with weight
    `coarse * hole`, and one on known pixels (`coarse_known`) with weight `coarse * known`. All other losses are logged
    under the name of their weight. See `by_name`.

    Attributes:
        hole, known: L1 of the result on hole pixels and on known pixels.
        coarse: the same two losses of the coarse image, relative to those of the result.
        parsing: cross-entropy of the parsing, on images that have labels.
        coordination: InCo², inter + intra.
        perceptual, style: L1 between the features of a frozen network, and between their Gram matrices.
        distribution: the sliced Wasserstein distance between these features in the hole.
        texture: the same distance between small patches of pixels.
        adversarial: the generator's hinge loss.
        feature_matching: L1 between the discriminator's features of the result and of the image; needs `adversarial`.
    """

    hole: float = 6.0
    known: float = 0.05
    coarse: float = 0.5
    parsing: float = 0.1
    coordination: float = 0.1
    perceptual: float = 0.0
    style: float = 0.0
    distribution: float = 0.0
    texture: float = 0.0
    adversarial: float = 0.0
    feature_matching: float = 0.0

    @property
    def compares_features(self) -> bool:
        """Whether a loss needs the frozen network."""
        return bool(self.perceptual or self.style or self.distribution)

    def by_name(self) -> dict[str, float]:
        """The weight of each loss by the name that losses have in dictionaries and in the log."""
        weights = asdict(self)
        coarse = weights.pop("coarse")
        return weights | {"coarse_hole": coarse * self.hole, "coarse_known": coarse * self.known}


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of all losses, each times the weight of its name, 0-d.

    Raises:
        KeyError: a loss has no weight.
    """
    zero = next(iter(losses.values())).new_zeros(())
    return sum((weights[name] * loss for name, loss in losses.items()), zero)


def region_l1(result: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """The mean |result - target| over each image's region, and of these over the images, 0-d.

    Images count alike, and not their pixels: otherwise a batch would learn hardly anything from a hole that hides an
    eye. PSNR, whose mean is taken over images too, also weighs relative errors alike.

    Args:
        result, target: (B, 3, H, W).
        region: (B, 1, H, W) of 0 and 1. Images where it is empty do not count; with no other image the mean is 0.

    Raises:
        ValueError: different shapes. One region for several images is not broadcast.
    """
    if result.shape != target.shape:
        raise ValueError(f"target must be {tuple(result.shape)} like result, got {tuple(target.shape)}")
    expected = (result.shape[0], 1, *result.shape[2:])
    if region.shape != expected:
        raise ValueError(f"region must be {expected} to match result, got {tuple(region.shape)}")
    difference = (result.float() - target).abs() * region
    return image_mean(difference.sum((1, 2, 3)), result.shape[1] * region.sum((1, 2, 3)))


def image_mean(totals: Tensor, counts: Tensor) -> Tensor:
    """The mean of total / count over the images with a count above 0, 0-d; 0 if there is none.

    With several processes the mean is over the images of all processes: see `batch_mean`.

    Args:
        totals, counts: (B,).

    Raises:
        ValueError: different shapes, as from one hole for several images.
    """
    if totals.dim() != 1 or totals.shape != counts.shape:
        raise ValueError(f"totals and counts must be (B,) alike, got {tuple(totals.shape)} and {tuple(counts.shape)}")
    return batch_mean((totals / counts.clamp_min(1)).sum(), (counts > 0).sum())


def batch_mean(total: Tensor, count: Tensor) -> Tensor:
    """A sum over this process's part of a batch, divided by the count over the whole batch, 0-d; 0 for a count of 0.

    With several processes the result is scaled by their number. Gradients are averaged over the processes, so they
    become the gradients of the mean over the whole batch.
    """
    count = count.to(total.dtype)
    if world_size() > 1:
        distributed.all_reduce(count)
        total = total * world_size()
    return total / count.clamp_min(1)


def labels_at(labels: Tensor, like: Tensor) -> Tensor:
    """Subsample labels (B, H, W) to the size of the map `like` (B, K, h, w): the middle label of each cell."""
    down, across = labels.shape[1] // like.shape[2], labels.shape[2] // like.shape[3]
    return labels[:, down // 2 :: down, across // 2 :: across]


def parsing_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the parsing on labelled pixels, 0-d; 0 where there is none.

    Args:
        logits: (B, K, h, w).
        labels: (B, H, W) int64 with H, W multiples of h, w; 0 to K-1, or -1 where unknown. The loss uses the middle
            label of each cell.
    """
    labels = labels_at(labels, logits)
    total = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return batch_mean(total, (labels >= 0).sum())


def reconstruction_losses(raw_image: Tensor, raw_coarse: Tensor, image: Tensor, hole: Tensor) -> dict[str, Tensor]:
    """The L1 losses that all systems share: `hole`, `known`, `coarse_hole`, `coarse_known`, each 0-d and unweighted.

    Args:
        raw_image, raw_coarse: (B, 3, H, W), the result and the coarse image before known pixels are put back.
        image: (B, 3, H, W) in [-1, 1], uncorrupted.
        hole: (B, 1, H, W), 1 = corrupted.
    """
    return {
        "hole": region_l1(raw_image, image, hole),
        "known": region_l1(raw_image, image, 1 - hole),
        "coarse_hole": region_l1(raw_coarse, image, hole),
        "coarse_known": region_l1(raw_coarse, image, 1 - hole),
    }
