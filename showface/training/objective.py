"""The loss of a training step: the network's own losses, and those from a frozen network and a discriminator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from showface.losses import LossWeights, weighted_sum
from showface.models import InpaintingNetwork
from showface.models.discriminator import Discriminator
from showface.models.stages import WHOLE, Stage
from showface.training.feature_losses import feature_losses
from showface.training.features import FrozenFeatures
from showface.training.gan import feature_matching, generator_loss

SHIFTS = 8


class Objective(nn.Module):
    """A network and its losses in one module, so that both are compiled and parallelised together.

    Args:
        model: the network to train.
        weights: the weights of the losses.
        features: the network of `feature_losses`; may be None if those have no weight.
        stage: the stage of the training.
    """

    def __init__(
        self, model: InpaintingNetwork, weights: LossWeights, features: FrozenFeatures | None, stage: Stage = WHOLE
    ) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.features = features if stage.paints and weights.compares_features else None
        # Networks without stages don't take the argument.
        self._stage_argument: dict[str, str] = {"stage": stage.name} if stage.name else {}
        self.loss_weights = model.loss_weights(weights)

    def forward(
        self,
        image: Tensor,
        hole: Tensor,
        labels: Tensor,
        discriminator: Discriminator | None = None,
        shift: tuple[int, int] = (0, 0),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the detached result (B, 3, H, W) and the losses by name: unweighted, plus their weighted sum `total`.

        Args:
            image, hole, labels: as `InpaintingNetwork.training_losses`.
            discriminator: None leaves the adversarial loss and feature matching out.
            shift: offset of the images that the frozen network and the discriminator get, see `shift_at`.
        """
        output, losses = self.model.training_losses(image, hole, labels, self.weights, **self._stage_argument)
        result, image, hole = (shifted(x, shift) for x in (output.image, image, hole))
        if self.features is not None:
            losses |= feature_losses(self.features, result, image, hole, self.weights)
        if discriminator is not None:
            fake = discriminator.features(result, hole)
            losses["adversarial"] = generator_loss([scale[-1] for scale in fake], hole)
            if self.weights.feature_matching:
                with torch.no_grad():
                    real = discriminator.features(image, hole)
                losses["feature_matching"] = feature_matching(fake, real, hole)
        losses["total"] = weighted_sum(losses, self.loss_weights)
        return output.image.detach(), losses


def shift_at(step: int) -> tuple[int, int]:
    """The offset, down and to the right, of the images at a step: all SHIFTS x SHIFTS offsets in turn. *Ours*.

    The frozen network and the discriminator have strides, and the generator works on a grid of 4 x 4 pixels. With a
    fixed offset the generator learnt a pattern of dots that the strides skip.
    """
    return step % SHIFTS, step // SHIFTS % SHIFTS


def shifted(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """(B, C, H, W) shifted down and to the right; pixels that leave re-enter at the opposite side."""
    return torch.roll(x, shift, (2, 3))


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Within the context, the module's parameters get no gradient."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
