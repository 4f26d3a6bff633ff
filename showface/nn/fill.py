"""A smooth first guess for the hole: known colours, averaged down a pyramid and pushed back up."""

import torch
import torch.nn.functional as F
from torch import Tensor


def push_pull_fill(image: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole with a smooth interpolation of the known pixels.

    Each level of a pyramid holds the mean of the known pixels below it; going back up, what is unknown at a level
    takes the interpolated level above. Source: a classical scheme, its use here is *ours*.

    Args:
        image: (B, 3, H, W) floating point. What lies under the hole does not matter.
        hole: (B, 1, H, W), 1 = corrupted.

    Returns:
        (B, 3, H, W): `image` where known, the fill elsewhere; 0 where an image has no known pixel at all.
    """
    known = (hole < 0.5).to(image.dtype)
    # `where`, not a product: a NaN under the hole must not come through.
    levels = [(torch.where(known > 0, image, 0), known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        colour, weight = levels[-1]
        mass = F.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
        mean = F.avg_pool2d(colour * weight, 2, ceil_mode=True, count_include_pad=False)
        # One known pixel of four is as good as known: weights grow towards 1 on the way down.
        levels.append((mean / mass.clamp_min(1e-6), (4 * mass).clamp_max(1)))
    filled = levels[-1][0]
    for colour, weight in reversed(levels[:-1]):
        above = F.interpolate(filled, colour.shape[-2:], mode="bilinear", align_corners=False)
        filled = weight * colour + (1 - weight) * above
    return filled
