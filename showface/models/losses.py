"""The losses of MDRNets."""

from torch import Tensor

from showface import ops
from showface.losses import LossWeights, parsing_loss, reconstruction_losses
from showface.models.output import MDRNetsOutput
from showface.nn import hole_tokens, to_tokens


def inpainting_losses(
    output: MDRNetsOutput,
    image: Tensor,
    hole: Tensor,
    labels: Tensor,
    weights: LossWeights,
    features: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The losses of MDRNets, each 0-d and unweighted.

    The poster *states* the InCo² pair; the features that it compares and the other losses are *ours*.

    Args:
        output: of `MDRNets` for this image and hole.
        image: (B, 3, H, W) in [-1, 1], uncorrupted; H, W multiples of 16.
        hole: (B, 1, H, W), 1 = corrupted.
        labels: (B, H, W) int64 parsing, -1 where unknown.
        weights: the parsing and InCo² losses are left out where their weight is 0.
        features: from `MDRNets.encode`, of the result and of the target, each (B, C, h, w); None leaves InCo² out.
    """
    losses = reconstruction_losses(output.raw_image, output.raw_coarse, image, hole)
    if weights.parsing:
        losses["parsing"] = parsing_loss(output.parsing, labels)
    if weights.coordination and features is not None:
        result, target = features
        inter, intra = ops.coordination_loss(to_tokens(result), to_tokens(target), hole_tokens(hole, result))
        losses["coordination"] = inter + intra
    return losses
