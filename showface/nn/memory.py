"""The Disentangled Memory Module: one memory block per semantic part of the face."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from showface import ops
from showface.distributed import world_size
from showface.nn.tokens import to_map, to_tokens
from showface.ops.precision import full_precision


class DisentangledMemory(nn.Module):
    """Look up each semantic part of a feature map in its own memory block (the DMM).

    Features are averaged over each region of a soft parsing. Each region's latent reads the region's block, and the
    results are spread back over the regions. A running mean of each region's latents, its centre, is subtracted before
    the lookup and added to the result: otherwise the mean dominates, all cosines are near 1, and faces look alike.
    Memory blocks per part are *stated*; addressing, writing and centring are *ours*.

        memory = DisentangledMemory(channels=64, regions=19, slots=64)
        recalled = memory(features, parsing)      # (B, 64, h, w), (B, 19, h, w) -> (B, 64, h, w)
        memory.write(clean_features, parsing)     # in training: store parts of uncorrupted images

    Args:
        channels: width C of the features.
        regions: number K of semantic parts, one block each.
        slots: number S of slots in a block.
        temperature: factor on the cosines before the softmax over slots, positive; higher is sharper.
        learnable_temperature: train the temperature; otherwise it is fixed.
        rate: EMA rate of a slot for one unit of written mass, in (0, 1).
        patience: a slot that got less than `reseed_below` mass in each of this many writes is idle. It is replaced by
            the latent of the current batch that its block recalls worst, so that no slot stays unused.
        reseed_below: mass, in units of tokens.
        horizon: window of the running means, in latents.

    Buffers: `memory` (K, S, C); `idle` (K, S), the number of writes since a slot last got enough mass; `centre`
    (K, C), the running means; `written` (K,), the number of latents written to each block, at most `horizon`.
    `.half()` and `.bfloat16()` leave the last two in float32. To train in half precision, use autocast: a memory in
    half precision loses small updates.
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
        # New slots hold noise. They count as idle, so the first writes replace them by latents.
        self.register_buffer("idle", torch.full((regions, slots), patience, dtype=torch.int32))
        self.register_buffer("centre", torch.zeros(regions, channels))
        self.register_buffer("written", torch.zeros(regions))
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log(), requires_grad=learnable_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature, 0-d. Its logarithm is the parameter, so it stays positive."""
        return self.log_temperature.exp()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DisentangledMemory":
        """All conversions of a module come here. Counts and means in half precision would stop at a few hundred."""
        before = {"centre": self.centre, "written": self.written}
        super()._apply(fn, recurse)
        for name, x in before.items():
            moved = self.get_buffer(name)
            if moved.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, x.to(moved.device))
        return self

    def forward(self, features: Tensor, parsing: Tensor) -> Tensor:
        """Recall features for each position. A `write` before the backward does not disturb it.

        Args:
            features: (B, C, h, w).
            parsing: (B, K, h, w), the probability of each region at each position.

        Returns:
            (B, C, h, w), dtype of `features`.

        Raises:
            ValueError: as `pool`.
        """
        latent, region = self.pool(features, parsing)
        # The backward needs the memory as it is now, and `write` changes it in place.
        memory = self.memory.to(latent.dtype, copy=torch.is_grad_enabled())
        recalled = ops.memory_read(latent, memory, region, temperature=self.temperature)
        centre = torch.where(region[:, None] < 0, 0, self.centre.to(latent.dtype).repeat(features.shape[0], 1))
        recalled = (recalled + centre).to(features.dtype).view(*parsing.shape[:2], features.shape[1])  # (B, K, C)
        return to_map(to_tokens(parsing.to(features.dtype)) @ recalled, parsing).to(features.dtype)

    def pool(self, features: Tensor, parsing: Tensor) -> tuple[Tensor, Tensor]:
        """One latent per image and region: the mean of the features, weighted by the parsing, minus the centre.

        Returns:
            latent (B*K, C), in float32 for half precision, also under autocast; and region (B*K,) int64, which is -1
            where its area in the image is below 0.5 positions.

        Raises:
            ValueError: the number of channels or regions differs from this module's, or features and parsing differ in
                batch or size.
        """
        regions, _, channels = self.memory.shape
        expected = (features.shape[0], regions, *features.shape[2:])
        if features.dim() != 4 or features.shape[1] != channels or parsing.shape != expected:
            raise ValueError(
                f"features and parsing must be (B, {channels}, h, w) and (B, {regions}, h, w), "
                f"got {tuple(features.shape)} and {tuple(parsing.shape)}"
            )
        # The sums can exceed what half precision holds, and the centre is larger than what remains without it.
        dtype = torch.promote_types(features.dtype, torch.float32)
        with full_precision(features):
            weight = to_tokens(parsing.to(dtype))
            area = weight.sum(1)  # (B, K)
            mean = weight.mT @ to_tokens(features.to(dtype)) / area.clamp_min(0.5)[..., None]  # (B, K, C)
            mean = mean - self.centre.to(dtype)
        index = torch.arange(regions, device=features.device).expand_as(area)
        region = torch.where(area >= 0.5, index, -1)
        return mean.flatten(0, 1), region.flatten()

    @torch.no_grad()
    def write(self, features: Tensor, parsing: Tensor) -> None:
        """Store the parts of uncorrupted images in the buffers, without gradients. Arguments as `forward`.

        A part of an image whose latent is not finite counts as absent: it would stay in the buffers for ever. An empty
        batch changes nothing.

        With several processes, all processes of the default group must call it together, none with an empty batch. The
        memory becomes what a single process with all their images would compute.

        Raises:
            ValueError: as `pool`.
        """
        latent, region = self.pool(features, parsing)
        if len(latent) == 0 and world_size() == 1:
            return
        finite = latent.isfinite().all(1)
        latent, region = torch.where(finite[:, None], latent, 0), torch.where(finite, region, -1)
        latent = self._move_centre(latent.to(self.centre.dtype), region).to(self.memory.dtype)
        temperature = self.temperature
        if world_size() > 1:
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
        """Update the running means; return the latents minus them."""
        shown = (region >= 0).view(-1, len(self.centre), 1).to(latent.dtype)  # (B, K, 1)
        latent = latent.view(*shown.shape[:2], -1)  # (B, K, C)
        count, total = shown.sum(0), (latent * shown).sum(0)
        if world_size() > 1:
            distributed.all_reduce(count)
            distributed.all_reduce(total)
        self.written.add_(count[:, 0]).clamp_max_(self.horizon)
        # A batch with more latents than the horizon moves the centre to its own mean, not beyond.
        shift = total / torch.maximum(count, self.written[:, None]).clamp_min(1)
        self.centre.add_(shift)
        return (latent - shift).flatten(0, 1)

    def _reseed(self, latent: Tensor, region: Tensor) -> None:
        """Replace at most one idle slot of each block by the latent of its region that the block recalls worst."""
        recalled = ops.memory_read(latent, self.memory, region, temperature=self.temperature)
        known = F.cosine_similarity(latent, recalled, dim=1)  # (T,)
        regions = torch.arange(self.memory.shape[0], device=region.device)
        known = torch.where(region == regions[:, None], known, torch.inf)  # (K, T)
        worst, token = known.min(1)
        candidate = latent[token]  # (K, C)
        if world_size() > 1:
            every = [torch.empty_like(candidate) for _ in range(world_size())]
            every_worst = [torch.empty_like(worst) for _ in every]
            distributed.all_gather(every, candidate)
            distributed.all_gather(every_worst, worst)
            worst, process = torch.stack(every_worst).min(0)
            candidate = torch.stack(every)[process, regions]
        slot = self.idle.argmax(1)
        replace = (self.idle[regions, slot] >= self.patience) & worst.isfinite()
        self.memory[regions, slot] = torch.where(replace[:, None], candidate, self.memory[regions, slot])
        self.idle[regions, slot] = torch.where(replace, 0, self.idle[regions, slot])
