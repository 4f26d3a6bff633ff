"""What a step of training computes: a network's own losses, and those that other networks judge its results by."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from showface.losses import LossWeights, weighted_sum
from showface.models import InpaintingNetwork
from showface.training.adversary import generator_loss
from showface.training.features import FrozenFeatures, perceptual_and_style

SHIFTS = 8


class Objective(nn.Module):
    """A network and its losses in one module, so that they are compiled, and made parallel, together.

    Args:
        model: the network to train.
        weights: of its losses.
        features: what perceptual and style losses compare, None if neither has a weight.
    """

    def __init__(self, model: InpaintingNetwork, weights: LossWeights, features: FrozenFeatures | None) -> None:
        super().__init__()
        self.model, self.weights, self.features = model, weights, features

    def forward(
        self,
        image: Tensor,
        hole: Tensor,
        labels: Tensor,
        discriminator: nn.Module | None = None,
        shift: tuple[int, int] = (0, 0),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result, (B, 3, H, W) without a gradient, and every loss with `total`, their weighted sum.

        Args:
            image, hole, labels: as `InpaintingNetwork.training_losses`.
            discriminator: (image, hole) -> logits; None leaves the adversarial loss out.
            shift: how far the images that other networks judge are moved, down and to the right, see `shift_at`.
        """
        output, losses = self.model.training_losses(image, hole, labels, self.weights)
        judged = {}
        result, image, hole = (moved(x, shift) for x in (output.image, image, hole))
        if self.features is not None:
            judged["perceptual"], judged["style"] = perceptual_and_style(self.features, result, image)
        if discriminator is not None:
            judged["adversarial"] = generator_loss(discriminator(result, hole), hole)
        if judged:
            losses |= judged
            losses["total"] = losses["total"] + weighted_sum(judged, self.weights)
        return output.image.detach(), losses


def shift_at(step: int) -> tuple[int, int]:
    """Where networks that judge images get them at a step: all of SHIFTS x SHIFTS places in turn. *Ours*.

    Their convolutions have strides, the network that fills has a grid of its own, and always in the same place on each
    other they let it draw a pattern of dots that none of their samples met.
    """
    return step % SHIFTS, step // SHIFTS % SHIFTS


def moved(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """(B, C, H, W) moved down and to the right; what leaves it there comes back at the other side."""
    return torch.roll(x, shift, (2, 3))


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The module, whose parameters take no gradient meanwhile."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
