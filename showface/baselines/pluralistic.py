"""What the pluralistic baselines share: sampling, training in stages, and discrete codes."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from showface.baselines.base import Baseline
from showface.distributed import world_size
from showface.losses import LossWeights
from showface.models.output import InpaintingOutput
from showface.models.stages import Stage


class PluralisticBaseline(Baseline):
    """A baseline that draws its results at random, and is trained in stages. Subclasses define `fill_once`.

    `forward` is the sample of seed 0, as the papers' tables are of single samples. An image's samples depend on its
    seed and size, but not on the other images of the batch or on torch's global random numbers.
    """

    stages: ClassVar[tuple[Stage, ...]]

    def fill_once(self, image: Tensor, hole: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """`fill` with random numbers from a generator on the CPU. All images of a batch must get the same numbers."""
        raise NotImplementedError

    @torch.no_grad()
    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        return self.fill_once(image, hole, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def sample(self, image: Tensor, hole: Tensor, n: int = 1, seed: int = 0) -> Tensor:
        """Several results for each image. Sample i of seed s is sample 0 of seed s + i.

        Args:
            image, hole: as `forward`.
            n: number of samples.
            seed: seed of the first sample.

        Returns:
            (n, B, 3, H, W); known pixels are those of `image`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        padded = self.prepare(image, hole)
        samples = []
        for i in range(n):
            result = self.fill_once(*padded, torch.Generator().manual_seed(seed + i))
            samples.append(self.finish(image, hole, *result).image)
        return torch.stack(samples)

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights, stage: str = ""
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        """The losses of a stage; by default of the last one. In stages that don't paint, the output is blank."""
        stage = stage or self.stages[-1].name
        if stage not in [known.name for known in self.stages]:
            raise ValueError(f"stage must be one of {', '.join(known.name for known in self.stages)}, got {stage!r}")
        raw, losses = self.stage_losses(stage, image, hole)
        return self.finish(image, hole, raw, raw), losses

    def stage_losses(self, stage: str, image: Tensor, hole: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The result before compositing, zeros in a stage that doesn't paint, and the losses of a stage."""
        raise NotImplementedError


class Codebook(nn.Module):
    """Vectors that follow, by a moving average, the mean of the features nearest to them.

    The buffers start at random. The first `update` draws the codes from its features, and a code that is hardly ever
    the nearest is replaced by a random feature. Both are *ours*: otherwise most codes were never used.

    Args:
        codes: number of codes K.
        channels: length C of a code.
        decay: of the moving average, per update; 1 gives the mean over all updates, which is mini-batch k-means.
    """

    unused_below = 0.01  # as a share of the mean use
    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, channels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", 0.5 * torch.randn(codes, channels))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, channels))

    def distances(self, features: Tensor) -> Tensor:
        """The squared distance of each feature to each code: (N, C) -> (N, K) float32."""
        with torch.autocast(features.device.type, enabled=False):
            features, codes = features.float(), self.vectors.float()
            return features.square().sum(1, keepdim=True) - 2 * features @ codes.mT + codes.square().sum(1)

    def nearest(self, x: Tensor) -> Tensor:
        """The index of the nearest code at each position: (B, C, h, w) -> (B, h, w) int64."""
        flat = x.movedim(1, -1).flatten(0, 2)
        return self.distances(flat).argmin(1).view(len(x), *x.shape[2:])

    def look_up(self, index: Tensor) -> Tensor:
        """The codes at (B, h, w) int64 -> (B, C, h, w)."""
        return F.embedding(index, self.vectors).movedim(-1, 1)

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Replace each feature of (B, C, h, w) by its nearest code.

        Returns:
            The codes (B, C, h, w), whose gradient passes straight through to `x`; their indices (B, h, w); and the
            commitment loss, the mean squared distance of `x` to its codes, 0-d.
        """
        index = self.nearest(x)
        codes = self.look_up(index).to(x.dtype)
        commitment = F.mse_loss(x.float(), codes.float())
        return x + (codes - x).detach(), index, commitment

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Move the codes towards the features (N, C) that are nearest to them.

        With several processes, all must call it together; the codes stay the same in all of them.
        """
        features = features.detach().float()
        if not bool(self.counts.any()):
            self.vectors.copy_(self._draw(features))
        index = self.distances(features).argmin(1)
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(features[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, index, features)
        if world_size() > 1:
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        self.counts.mul_(self.decay).add_(counts)
        self.sums.mul_(self.decay).add_(sums)
        mean = self.counts.mean()
        unused = self.counts < self.unused_below * mean
        # A replaced code gets a small count, so that the next features move it far.
        self.counts.copy_(torch.where(unused, 0.1 * mean, self.counts))
        self.sums.copy_(torch.where(unused[:, None], 0.1 * mean * self._draw(features), self.sums))
        self.vectors.copy_(self.sums / self.counts[:, None])

    def _draw(self, features: Tensor) -> Tensor:
        """As many random features as there are codes, (K, C), the same in all processes."""
        drawn = features[torch.randint(len(features), (len(self.counts),), device=features.device)]
        if world_size() > 1:
            distributed.broadcast(drawn, 0)
        return drawn


def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Scaled dot-product attention of (B, heads, L, C) each, (B, heads, L, C).

    On a CPU, bfloat16 is computed in float32, because the backward of torch's operator is six times as fast in it.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=is_causal)
    return attended.to(query.dtype)


def draw(logits: Tensor, uniform: Tensor, top: int = 0) -> Tensor:
    """Draw one of K classes in each row by inverting the distribution function over the classes by probability.

    Args:
        logits: (B, K).
        uniform: random numbers in [0, 1), (B,) or 0-d.
        top: only the most probable `top` classes can be drawn; 0 allows all.

    Returns:
        (B,) int64.
    """
    classes = logits.shape[1]
    values, order = logits.float().topk(min(top or classes, classes), dim=1)
    cumulated = values.softmax(1).cumsum(1)
    threshold = uniform.to(cumulated).expand(len(logits))[:, None] * cumulated[:, -1:]
    place = (cumulated <= threshold).sum(1, keepdim=True).clamp_max(order.shape[1] - 1)
    return order.gather(1, place)[:, 0]
