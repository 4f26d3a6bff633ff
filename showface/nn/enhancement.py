"""The Mask-Region Enhanced Module: corrupted tokens attend to known tokens."""

import torch
from torch import Tensor, nn

from showface import ops
from showface.nn.tokens import hole_tokens, to_map, to_tokens


class MaskRegionEnhancement(nn.Module):
    """Fuse features with recalled features, then let corrupted tokens attend to known tokens (the MREM).

    Fusing and masked correlation mining are *stated*; cosine correlation with a temperature is *ours*.

        enhance = MaskRegionEnhancement(channels=64, memory_channels=64)
        enhanced = enhance(features, hole, recalled)     # (B, 64, h, w), (B, 1, H, W), (B, 64, h, w) -> (B, 64, h, w)

    Args:
        channels: width of the features and of the output.
        memory_channels: width of the recalled features; 0 for none.
        key_channels: width of queries and keys; `channels` by default.
        temperature: factor on the cosines before the softmax, positive; higher is sharper.
        learnable_temperature: train the temperature; otherwise it is fixed.
    """

    def __init__(
        self,
        channels: int,
        memory_channels: int = 0,
        *,
        key_channels: int | None = None,
        temperature: float = 16.0,
        learnable_temperature: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        key_channels = key_channels or channels
        self.memory_channels = memory_channels
        self.fuse = nn.Conv2d(channels + memory_channels, channels, 1)
        self.query = nn.Conv2d(channels, key_channels, 1)
        self.key = nn.Conv2d(channels, key_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log(), requires_grad=learnable_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature, 0-d. Its logarithm is the parameter, so it stays positive."""
        return self.log_temperature.exp()

    def forward(self, features: Tensor, hole: Tensor, recalled: Tensor | None = None) -> Tensor:
        """Enhance the corrupted positions.

        Args:
            features: (B, channels, h, w).
            hole: (B, 1, H, W) at any size, 1 = corrupted; a token is corrupted when any pixel under it is.
            recalled: (B, memory_channels, h, w), or None where `memory_channels` is 0.

        Returns:
            (B, channels, h, w): the fused features, plus the attention output at corrupted positions.

        Raises:
            ValueError: a wrong shape of `hole` or `recalled`, or `recalled` given or missing against `memory_channels`.
        """
        self._check(features, hole, recalled)
        fused = self.fuse(features if recalled is None else torch.cat([features, recalled], dim=1))
        attended = ops.masked_correlation(
            to_tokens(self.query(fused)),
            to_tokens(self.key(fused)),
            to_tokens(self.value(fused)),
            hole_tokens(hole, fused),
            temperature=self.temperature,
        )
        return fused + to_map(attended, fused)

    def _check(self, features: Tensor, hole: Tensor, recalled: Tensor | None) -> None:
        batch = features.shape[0]
        if hole.dim() != 4 or hole.shape[:2] != (batch, 1):
            raise ValueError(f"hole must be ({batch}, 1, H, W) to match features, got {tuple(hole.shape)}")
        if self.memory_channels == 0:
            if recalled is not None:
                raise ValueError(f"recalled must be None with memory_channels=0, got {tuple(recalled.shape)}")
            return
        expected = (batch, self.memory_channels, *features.shape[2:])
        if recalled is None or recalled.shape != expected:
            got = None if recalled is None else tuple(recalled.shape)
            raise ValueError(f"recalled must be {expected} to match features and memory_channels, got {got}")
