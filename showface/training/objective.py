"""The loss of a training step: the network's own losses, and those from a frozen network and a discriminator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from showface.losses import LossWeights, weighted_sum
from showface.models import InpaintingNetwork
from showface.models.discriminator import Discriminator
from showface.models.stages import WHOLE, Stage
from showface.training.feature_losses import feature_losses, texture_distance
from showface.training.features import FrozenFeatures
from showface.training.gan import Seen, feature_matching, generator_loss
from showface.training.views import viewed


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
        self.texture = stage.paints and bool(weights.texture)
        self.looks = self.texture or self.features is not None or (stage.paints and bool(weights.adversarial))
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
        zoom: Tensor | None = None,
    ) -> tuple[Seen, dict[str, Tensor]]:
        """Return what a discriminator sees, detached, and the losses by name, with their weighted sum `total`.

        Args:
            image, hole, labels: as `InpaintingNetwork.training_losses`.
            discriminator: None leaves the adversarial loss and feature matching out.
            shift, zoom: what the frozen network, the texture loss and the discriminator see, see
                `showface.training.views`.
        """
        output, losses = self.model.training_losses(image, hole, labels, self.weights, **self._stage_argument)
        result = output.image
        if self.looks:
            result, image, hole = viewed((result, image), hole, shift, zoom)
        maps = wanted = None
        if self.features is not None:
            maps = self.features(result)
            with torch.no_grad():
                wanted = self.features(image)
            losses |= feature_losses(maps, wanted, hole, self.weights)
        if self.texture:
            losses["texture"] = texture_distance(result, image, hole)
        if discriminator is not None:
            fake = discriminator.features(result, hole, maps)
            losses["adversarial"] = generator_loss([scale[-1] for scale in fake], hole)
            if self.weights.feature_matching:
                with torch.no_grad():
                    real = discriminator.features(image, hole, wanted)
                losses["feature_matching"] = feature_matching(fake, real, hole)
        losses["total"] = weighted_sum(losses, self.loss_weights)
        known = None if maps is None or wanted is None else (wanted, [x.detach() for x in maps])
        return Seen(image, result.detach(), hole, known), losses


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Within the context, the parameters of the module, if there is one, get no gradient."""
    parameters = [] if module is None else list(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
