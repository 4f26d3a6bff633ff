"""PIC (Zheng et al., *Pluralistic Image Completion*, CVPR 2019)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import Baseline, BaselineConfig, count_strides
from showface.losses import LossWeights, reconstruction_losses
from showface.models.output import InpaintingOutput
from showface.nn import ResidualBlock
from showface.nn.blocks import activate, upsample
from showface.nn.tokens import pool_hole


@dataclass
class Gaussian:
    """Independent normal distributions, given by mean and standard deviation, which have the same shape."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Gaussian":
        """Split features (B, 2 C, h, w) into the mean and, through a softplus, the deviation, each (B, C, h, w)."""
        mean, deviation = x.float().chunk(2, dim=1)
        return cls(mean, F.softplus(deviation) + 1e-3)

    def sample(self) -> Tensor:
        """One sample by reparametrisation: gradients reach mean and deviation."""
        return self.mean + self.deviation * torch.randn_like(self.mean)


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), averaged over all distributions, 0-d."""
    ratio = q.deviation / p.deviation
    distance = (q.mean - p.mean) / p.deviation
    return (0.5 * (ratio.square() + distance.square() - 1) - ratio.log()).mean()


class ShortLongAttention(nn.Module):
    """The decoder's features attend to themselves (short) and, with the same scores, to the encoder's features (long).

        scores = softmax(Q^T Q),  Q from the decoder's features
        short  = decoded + gamma * scores(decoded)
        long   = known * encoded + (1 - known) * alpha * scores(encoded)

    Both are concatenated and merged. `alpha` and `gamma` are learnt and start at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, max(1, channels // 4), 1)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.alpha = nn.Parameter(torch.zeros(()))
        self.join = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), ResidualBlock(channels))

    def forward(self, decoded: Tensor, encoded: Tensor, hole: Tensor) -> Tensor:
        """(B, channels, h, w) twice, and the hole (B, 1, H, W) at any size, 1 = corrupted -> (B, channels, h, w)."""
        query = self.query(decoded).flatten(2)
        scores = (query.mT @ query).softmax(2)  # (B, N, N)

        def attend(x: Tensor) -> Tensor:
            return (x.flatten(2) @ scores.mT).view_as(x)

        known = 1 - pool_hole(hole, decoded.shape[2], decoded.shape[3])
        short = decoded + self.gamma * attend(decoded)
        long = known * encoded + (1 - known) * self.alpha * attend(encoded)
        return self.join(torch.cat([short, long], dim=1))


class PIC(Baseline):
    """A conditional variational autoencoder with two paths through the same networks.

    The generative path fills from the visible part and a latent of the prior p(z | visible). The reconstructive path
    fills from the visible part and a latent of the posterior q(z | hidden), computed from the hidden part. There
    are two KL terms: from q to a normal distribution, which is narrower when less is hidden, and from q to p. `forward`
    runs the generative path with the prior's mean, so it is deterministic.

    Paper's size: `channels` 32, for images of 256 with five strides of 2; here there are as many strides as reduce
    `image_size` to 8x8. 5.4 M parameters by default, including those of the posterior, which only training uses.

    Simplifications: no discriminators. Instead the generative path has an L1 loss in the hole too, which the paper
    does not use, so its results vary less. One output at full size instead of four sizes; no spectral normalisation.
    """

    system = "pic"
    paper_channels = 32
    prior_blocks = 6

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        strides = count_strides(self.config.image_size, smallest=8)
        self.stride = 2**strides
        widths = [3, *(self.config.channels * min(2**i, 4) for i in range(strides))]
        deepest = widths[-1]
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), ResidualBlock(b)) for a, b in pairwise(widths)
        )
        self.prior = nn.Sequential(
            *(ResidualBlock(deepest) for _ in range(self.prior_blocks)), nn.Conv2d(deepest, 2 * deepest, 1)
        )
        self.posterior = nn.Sequential(ResidualBlock(deepest), nn.Conv2d(deepest, 2 * deepest, 1))
        self.enter = nn.Sequential(nn.Conv2d(deepest, deepest, 3, padding=1), ResidualBlock(deepest))
        # The encoder's widths in reverse; full size has the width of stride 2.
        up = [*widths[:0:-1], widths[1]]
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), ResidualBlock(b)) for a, b in pairwise(up)
        )
        # After two upsamplings, as in the paper, where the map is then 32x32.
        self.attention_after = min(2, strides - 1)
        self.attention = ShortLongAttention(up[self.attention_after])
        self.to_image = nn.Conv2d(up[-1], 3, 3, padding=1)

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encode(image)
        result = self.generate(Gaussian.of(self.prior(features[-1])).mean, features, hole)
        return result, result

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features at strides 2, 4, ... of an image whose hidden pixels are 0."""
        features = []
        for block in self.encoder:
            image = block(image)
            features.append(image)
        return features

    def generate(self, latent: Tensor, features: list[Tensor], hole: Tensor) -> Tensor:
        """The image (B, 3, H, W) from a latent and the features of the visible part."""
        x = features[-1] + self.enter(latent.to(features[-1].dtype))
        for steps, block in enumerate(self.decoder, start=1):
            x = block(upsample(x))
            if steps == self.attention_after:
                x = self.attention(x, features[-1 - steps], hole)
        return self.to_image(activate(x)).tanh()

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        visible, padded_hole = self.prepare(image, hole)
        hidden, _ = self.prepare(image, 1 - hole)
        features = self.encode(visible)
        prior = Gaussian.of(self.prior(features[-1]))
        posterior = Gaussian.of(self.posterior(self.encode(hidden)[-1]))

        def path(latent: Tensor) -> tuple[InpaintingOutput, dict[str, Tensor]]:
            result = self.generate(latent, features, padded_hole)
            output = self.finish(image, hole, result, result)
            return output, reconstruction_losses(output.raw_image, output.raw_coarse, image, hole)

        output, losses = path(prior.sample())
        losses |= {f"posterior_{name}": loss for name, loss in path(posterior.sample())[1].items()}
        # A smaller hole needs less information: a narrower distribution.
        hole_ratio = hole.mean((1, 2, 3), keepdim=True).clamp_min(0.01).expand_as(posterior.mean)
        standard = Gaussian(torch.zeros_like(posterior.mean), hole_ratio.sqrt())
        losses["kl"] = kl_divergence(posterior, standard) + kl_divergence(posterior, prior)
        return output, losses

    def loss_weights(self, weights: LossWeights) -> dict[str, float]:
        shared = weights.by_name()
        posterior = {f"posterior_{name}": weight for name, weight in shared.items()}
        # As in the paper, the KL terms have the weight of L1: of the result's, without the coarse image's.
        return shared | posterior | {"kl": weights.hole}
