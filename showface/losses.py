"""What MDRNets and the systems compared with them learn from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, distributed

from showface import ops
from showface.nn import hole_tokens, to_tokens
from showface.nn.processes import processes

if TYPE_CHECKING:
    from showface.models import InpaintingOutput, MDRNetsOutput


@dataclass(frozen=True)
class LossWeights:
    """What each loss weighs in the sum; 0 leaves it out.

    Attributes:
        hole, known: L1 of the result on hole and known pixels.
        coarse: both of these again, for the coarse image.
        parsing: cross-entropy of the parsing, on images that have labels.
        coordination: InCo², inter + intra.
        perceptual, style: distances between features, and between their Gram matrices, of a frozen network.
        adversarial: the hinge loss of a discriminator's opinion.
    """

    hole: float = 6.0
    known: float = 0.05
    coarse: float = 0.5
    parsing: float = 0.1
    coordination: float = 0.1
    perceptual: float = 0.0
    style: float = 0.0
    adversarial: float = 0.0


def region_l1(result: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """The mean |result - target| over the pixels of a region of the whole batch, 0-d; 0 where the region is empty.

    Where `torch.distributed` runs, the whole batch is that of all processes: see `batch_mean`.

    Args:
        result, target: (B, 3, H, W).
        region: (B, 1, H, W) of 0 and 1.
    """
    difference = (result.float() - target).abs() * region
    return batch_mean(difference.sum(), result.shape[1] * region.sum())


def batch_mean(total: Tensor, count: Tensor) -> Tensor:
    """A sum over this process' part of a batch, divided by what was counted in the whole batch, 0-d; 0 if nothing was.

    Scaled so that the mean over all processes, which is what becomes of their gradients, is the mean over the batch.
    """
    count = count.to(total.dtype)
    if processes() > 1:
        distributed.all_reduce(count)
        total = total * processes()
    return total / count.clamp_min(1)


def labels_at(labels: Tensor, like: Tensor) -> Tensor:
    """Labels (B, H, W) at the positions of the map `like` (B, K, h, w): the middle one of each cell, (B, h, w)."""
    down, across = labels.shape[1] // like.shape[2], labels.shape[2] // like.shape[3]
    return labels[:, down // 2 :: down, across // 2 :: across]


def parsing_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the parsing on labelled pixels, 0-d; 0 where there is none.

    Args:
        logits: (B, K, h, w).
        labels: (B, H, W) int64 with H, W multiples of h, w; 0 to K-1, or -1 where unknown. The middle label of each
            cell is compared.
    """
    labels = labels_at(labels, logits)
    total = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return batch_mean(total, (labels >= 0).sum())


def reconstruction_losses(
    output: InpaintingOutput, image: Tensor, hole: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """The L1 losses that all systems share, `hole`, `known` and `coarse`, unweighted; arguments as below."""
    return {
        "hole": region_l1(output.raw_image, image, hole),
        "known": region_l1(output.raw_image, image, 1 - hole),
        "coarse": weights.hole * region_l1(output.raw_coarse, image, hole)
        + weights.known * region_l1(output.raw_coarse, image, 1 - hole),
    }


def weighted_sum(losses: dict[str, Tensor], weights: LossWeights, **own: float) -> Tensor:
    """The sum of losses, 0-d, each times its weight; `own` are the weights of losses that `weights` doesn't know."""
    weight_of = asdict(weights) | own
    zero = next(iter(losses.values())).new_zeros(())
    return sum((weight_of[name] * loss for name, loss in losses.items()), zero)


def inpainting_losses(
    output: MDRNetsOutput,
    image: Tensor,
    hole: Tensor,
    labels: Tensor,
    weights: LossWeights,
    features: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every loss of MDRNets that has a weight, itself unweighted, and `total`, their weighted sum.

    The poster *states* the InCo² pair; the features that it compares and the other losses are *ours*.

    Args:
        output: of `MDRNets` for this image and hole.
        image: (B, 3, H, W) in [-1, 1], uncorrupted; H, W multiples of 16.
        hole: (B, 1, H, W), 1 = corrupted.
        labels: (B, H, W) int64 parsing, -1 where unknown.
        features: of `MDRNets.encode`, for the result and for the target, each (B, C, h, w); None leaves InCo² out.
    """
    losses = reconstruction_losses(output, image, hole, weights)
    if weights.parsing:
        losses["parsing"] = parsing_loss(output.parsing, labels)
    if weights.coordination and features is not None:
        result, target = features
        inter, intra = ops.coordination_loss(to_tokens(result), to_tokens(target), hole_tokens(hole, result))
        losses["coordination"] = inter + intra
    losses["total"] = weighted_sum(losses, weights)
    return losses
