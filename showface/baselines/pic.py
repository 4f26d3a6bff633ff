"""PIC (Zheng et al., *Pluralistic Image Completion*, CVPR 2019)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import Baseline, BaselineConfig, count_strides
from showface.losses import LossWeights, reconstruction_losses, weighted_sum
from showface.models.network import InpaintingOutput
from showface.nn import ResidualBlock
from showface.nn.blocks import activate, upsample


@dataclass
class Gaussian:
    """Independent normal distributions: their mean and standard deviation, of one shape."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Gaussian":
        """From features (B, 2 C, h, w): means and, before a softplus, deviations, (B, C, h, w) each."""
        mean, deviation = x.float().chunk(2, dim=1)
        return cls(mean, F.softplus(deviation) + 1e-3)

    def sample(self) -> Tensor:
        """One sample, through which gradients flow to both."""
        return self.mean + self.deviation * torch.randn_like(self.mean)


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), the mean over all of the distributions, 0-d."""
    ratio = q.deviation / p.deviation
    distance = (q.mean - p.mean) / p.deviation
    return (0.5 * (ratio.square() + distance.square() - 1) - ratio.log()).mean()


class ShortLongAttention(nn.Module):
    """The decoder's features attend to themselves (short term) and, by the same scores, to the encoder's (long term).

        scores = softmax(Q^T Q),  Q from the decoder's features
        short  = decoded + gamma * scores(decoded)
        long   = known * encoded + (1 - known) * alpha * scores(encoded)

    Both are then joined. `alpha` and `gamma` are learnt from 0.
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

        known = 1 - F.adaptive_max_pool2d(hole, decoded.shape[2:])
        short = decoded + self.gamma * attend(decoded)
        long = known * encoded + (1 - known) * self.alpha * attend(encoded)
        return self.join(torch.cat([short, long], dim=1))


class PIC(Baseline):
    """A conditional variational autoencoder of two paths through the same networks.

    The generative path fills from the visible part and a latent of the prior p(z | visible); the reconstructive path
    from the visible part and a latent of the posterior q(z | hidden), which has seen what to fill in. Two KL terms
    tie them: of q to a normal distribution that is the narrower the less is hidden, and of q to p. `forward` runs
    the generative path with the prior's mean, so one image has one result.

    Paper's size: `channels` 32, for images of 256 with five strides of 2; here the strides are those that leave 8x8
    of `image_size`. 5.4 M parameters by default, with the posterior's, which only training uses.

    Simplifications: no discriminators; in their place the generative path answers to L1 in the hole too, where the
    paper leaves it free, so its results will vary less. One output at full size, not at four sizes; no spectral
    normalisation.
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
        # Back up through the encoder's widths; full size keeps that of stride 2.
        up = [*widths[:0:-1], widths[1]]
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), ResidualBlock(b)) for a, b in pairwise(up)
        )
        # At the paper's size, where the map is 32x32: two steps up.
        self.attention_after = min(2, strides - 1)
        self.attention = ShortLongAttention(up[self.attention_after])
        self.to_image = nn.Conv2d(up[-1], 3, 3, padding=1)

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encode(image)
        result = self.generate(Gaussian.of(self.prior(features[-1])).mean, features, hole)
        return result, result

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features at strides 2, 4, ... of an image that is 0 where it must not be seen."""
        features = []
        for block in self.encoder:
            image = block(image)
            features.append(image)
        return features

    def generate(self, latent: Tensor, features: list[Tensor], hole: Tensor) -> Tensor:
        """The image (B, 3, H, W) by a latent and the features of the visible part."""
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
            return output, reconstruction_losses(output, image, hole, weights)

        output, losses = path(prior.sample())
        losses["posterior"] = weighted_sum(path(posterior.sample())[1], weights)
        # The less is hidden, the less there is to tell.
        share = hole.mean((1, 2, 3), keepdim=True).clamp_min(0.01).expand_as(posterior.mean)
        standard = Gaussian(torch.zeros_like(posterior.mean), share.sqrt())
        losses["kl"] = kl_divergence(posterior, standard) + kl_divergence(posterior, prior)
        # As in the paper, the KL terms weigh what L1 does.
        losses["total"] = weighted_sum(losses, weights, posterior=1.0, kl=weights.hole)
        return output, losses
