"""The Disentangled Memory Module: one block of memory per semantic part of the face."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from showface import ops
from showface.nn.processes import processes
from showface.nn.tokens import to_map, to_tokens


class DisentangledMemory(nn.Module):
    """Look up each semantic part of a feature map in a memory block of its own (the DMM).

    Features are pooled over each region by a soft parsing; each region's latent reads its own block; the answers
    are spread back over the regions. A block stores how faces differ in its part: latents are taken from the region's
    centre, their running mean, which the answer gets back. Without it the cosines are those of the means, all near 1,
    and tell no face from another. Memory blocks per part are *stated*; addressing, writing and centring are *ours*.

        memory = DisentangledMemory(channels=64, regions=19, slots=64)
        recalled = memory(features, parsing)      # (B, 64, h, w), (B, 19, h, w) -> (B, 64, h, w)
        memory.write(clean_features, parsing)     # while training: store parts of uncorrupted images

    Args:
        channels: width C of the features.
        regions: number K of semantic parts, one block each.
        slots: size S of a block.
        temperature: how sharply a latent picks its slots: the factor on the cosine, positive.
        learnable_temperature: train the temperature, else it is fixed.
        rate: the share by which one unit of written mass moves a slot, in (0, 1).
        patience: a slot that got less than `reseed_below` mass in each of this many writes is given to a latent of
            the current batch, the one that its block recalls worst, so that no slot stays unused.
        reseed_below: mass, in units of tokens.
        horizon: the number of latents that a centre is the mean of.

    Buffers: `memory` (K, S, C); `idle` (K, S), the number of writes since a slot last got its mass; `centre` (K, C),
    and `written` (K,), the number of latents written to a block, counted up to `horizon`.
    """

    memory: Tensor
    idle: Tensor
    centre: Tensor
    written: Tensor

    def __init__(
        self,
        channels: int,
        regions: int = 19,
        slots: int = 64,
        *,
        temperature: float = 16.0,
        learnable_temperature: bool = True,
        rate: float = 0.05,
        patience: int = 200,
        reseed_below: float = 1e-3,
        horizon: int = 1000,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.rate, self.patience, self.reseed_below, self.horizon = rate, patience, reseed_below, horizon
        self.register_buffer("memory", F.normalize(torch.randn(regions, slots, channels), dim=-1))
        # New slots hold noise: they count as idle, so that the first writes fill them with latents.
        self.register_buffer("idle", torch.full((regions, slots), patience, dtype=torch.int32))
        self.register_buffer("centre", torch.zeros(regions, channels))
        self.register_buffer("written", torch.zeros(regions))
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log(), requires_grad=learnable_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature, 0-d; it is learnt by its logarithm, so that it stays positive."""
        return self.log_temperature.exp()

    def forward(self, features: Tensor, parsing: Tensor) -> Tensor:
        """What the memory recalls for each position.

        Args:
            features: (B, C, h, w).
            parsing: (B, K, h, w), the probability of each region at each position.

        Returns:
            (B, C, h, w), dtype of `features`.

        Raises:
            ValueError: the channels or regions are not those of this module.
        """
        latent, region = self.pool(features, parsing)
        recalled = ops.memory_read(latent, self.memory.to(latent.dtype), region, temperature=self.temperature)
        centre = torch.where(region[:, None] < 0, 0, self.centre.to(latent.dtype).repeat(len(features), 1))
        recalled = (recalled + centre).view(*parsing.shape[:2], -1)  # (B, K, C)
        return to_map(to_tokens(parsing.to(recalled.dtype)) @ recalled, parsing).to(features.dtype)

    def pool(self, features: Tensor, parsing: Tensor) -> tuple[Tensor, Tensor]:
        """One latent per image and region: the mean of the features, weighted by the parsing, from the centre.

        Returns:
            latent (B*K, C) and region (B*K,) int64; the region is -1 where an image has less than half a position
            of it.
        """
        regions, _, channels = self.memory.shape
        if features.shape[1] != channels or parsing.shape[1] != regions or features.shape[2:] != parsing.shape[2:]:
            raise ValueError(
                f"features and parsing must be (B, {channels}, h, w) and (B, {regions}, h, w), "
                f"got {tuple(features.shape)} and {tuple(parsing.shape)}"
            )
        parsing = parsing.to(features.dtype)
        area = parsing.float().sum((2, 3))  # (B, K)
        mean = (to_tokens(parsing).mT @ to_tokens(features)).float() / area.clamp_min(0.5)[..., None]  # (B, K, C)
        mean = mean - self.centre
        index = torch.arange(regions, device=features.device).expand_as(area)
        region = torch.where(area >= 0.5, index, -1)
        return mean.flatten(0, 1).to(features.dtype), region.flatten()

    @torch.no_grad()
    def write(self, features: Tensor, parsing: Tensor) -> None:
        """Store the parts of uncorrupted images. Arguments as `forward`; changes the buffers, has no gradient.

        Where `torch.distributed` runs, all processes of the default group must call it together; the memory becomes
        the one that a single process with all of their images would have.
        """
        latent, region = self.pool(features, parsing)
        latent = self._move_centre(latent.to(self.memory.dtype), region)
        temperature = self.temperature
        if processes() > 1:
            rho, total = ops.memory_accumulate(latent, self.memory, region, temperature=temperature)
            distributed.all_reduce(rho)
            distributed.all_reduce(total)
            after = ops.memory_blend(self.memory, rho, total, rate=self.rate)
        else:
            after, rho = ops.memory_write(latent, self.memory, region, temperature=temperature, rate=self.rate)
        self.memory.copy_(after)
        self.idle.copy_(torch.where(rho < self.reseed_below, self.idle + 1, 0))
        self._reseed(latent, region)

    def _move_centre(self, latent: Tensor, region: Tensor) -> Tensor:
        """Count latents into the centres; returns them as seen from there."""
        shown = (region >= 0).view(-1, len(self.centre), 1).to(latent.dtype)  # (B, K, 1)
        latent = latent.view(*shown.shape[:2], -1)  # (B, K, C)
        count, total = shown.sum(0), (latent * shown).sum(0)
        if processes() > 1:
            distributed.all_reduce(count)
            distributed.all_reduce(total)
        self.written.add_(count[:, 0]).clamp_max_(self.horizon)
        # Not past the mean of the batch, should that alone hold more latents than the horizon.
        shift = total / torch.maximum(count, self.written[:, None]).clamp_min(1)
        self.centre.add_(shift)
        return (latent - shift).flatten(0, 1)

    def _reseed(self, latent: Tensor, region: Tensor) -> None:
        """Give at most one idle slot of each block to the latent of that block's region that it recalls worst."""
        recalled = ops.memory_read(latent, self.memory, region, temperature=self.temperature)
        known = F.cosine_similarity(latent, recalled, dim=1)  # (T,)
        regions = torch.arange(self.memory.shape[0], device=region.device)
        known = torch.where(region == regions[:, None], known, torch.inf)  # (K, T)
        worst, token = known.min(1)
        candidate = latent[token]  # (K, C)
        if processes() > 1:
            every = [torch.empty_like(candidate) for _ in range(processes())]
            every_worst = [torch.empty_like(worst) for _ in every]
            distributed.all_gather(every, candidate)
            distributed.all_gather(every_worst, worst)
            worst, process = torch.stack(every_worst).min(0)
            candidate = torch.stack(every)[process, regions]
        slot = self.idle.argmax(1)
        replace = (self.idle[regions, slot] >= self.patience) & worst.isfinite()
        self.memory[regions, slot] = torch.where(replace[:, None], candidate, self.memory[regions, slot])
        self.idle[regions, slot] = torch.where(replace, 0, self.idle[regions, slot])
