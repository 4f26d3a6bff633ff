"""Feature maps as tokens. A channels-last (B, C, h, w) becomes (B, h*w, C) without a copy."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module) -> Module:
    """Convert a module's weights to channels-last, so that feature maps become tokens without a copy."""
    options: dict[str, Any] = {"memory_format": torch.channels_last}  # missing in torch's type hints
    return module.to(**options)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C); a view where `x` is channels-last."""
    return rearrange(x, "b c h w -> b (h w) c")


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h*w, C) -> (B, C, h, w) with the height and width of `like`, channels-last."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=like.shape[-2], w=like.shape[-1])


def hole_tokens(hole: Tensor, like: Tensor) -> Tensor:
    """The corrupted tokens of the feature map `like`: those with any corrupted pixel under them.

    Args:
        hole: (B, 1, H, W), 1 = corrupted.
        like: (B, C, h, w).

    Returns:
        (B, h*w) bool.
    """
    return pool_hole(hole.float(), like.shape[2], like.shape[3]).flatten(1) > 0.5


def pool_hole(hole: Tensor, height: int, width: int) -> Tensor:
    """The largest value of a hole (B, 1, H, W) under each position of a smaller map: (B, 1, height, width)."""
    if hole.shape[2] % height or hole.shape[3] % width:
        return F.adaptive_max_pool2d(hole, (height, width))
    # The same, but torch.export takes the output size of an adaptive pooling for a constant.
    return F.max_pool2d(hole, (int(hole.shape[2] // height), int(hole.shape[3] // width)))
