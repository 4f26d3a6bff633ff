"""Push-pull: fill the hole smoothly with averages of the known colours."""

import torch
import torch.nn.functional as F
from torch import Tensor


def push_pull_fill(image: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole with a smooth interpolation of the known pixels.

    The way down averages known pixels to ever coarser levels of a pyramid. The way up fills the unknown pixels of each
    level by interpolating the coarser level. Source: a classical scheme; its use here is *ours*.

    Args:
        image: (B, 3, H, W) floating point. Pixels under the hole are ignored.
        hole: (B, 1, H, W), 1 = corrupted.

    Returns:
        (B, 3, H, W): `image` where known, the fill elsewhere; all 0 for an image without known pixels.
    """
    known = (hole < 0.5).to(image.dtype)
    # `where`, not a product: a NaN under the hole must not spread.
    levels = [(torch.where(known > 0, image, 0), known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        colour, weight = levels[-1]
        mass = F.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
        mean = F.avg_pool2d(colour * weight, 2, ceil_mode=True, count_include_pad=False)
        # One known pixel of four is enough for a full weight.
        levels.append((mean / mass.clamp_min(1e-6), (4 * mass).clamp_max(1)))
    filled = levels[-1][0]
    for colour, weight in reversed(levels[:-1]):
        above = F.interpolate(filled, colour.shape[-2:], mode="bilinear", align_corners=False)
        filled = weight * colour + (1 - weight) * above
    return filled
