"""Push-pull: fill the hole smoothly with averages of the known colours."""

import torch
import torch.nn.functional as F
from torch import Tensor

EXPORTED_LEVELS = 12  # an exported program fills images of up to 2 ** 12 = 4096 pixels a side


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
    exporting, size = torch.compiler.is_exporting(), (image.shape[2], image.shape[3])
    # A program's number of levels can't depend on the size. Further levels of one pixel don't change the result.
    while len(levels) <= EXPORTED_LEVELS if exporting else max(levels[-1][0].shape[-2:]) > 1:
        colour, weight = levels[-1]
        if exporting:
            mass, mean = (_halve_exporting(x, size, len(levels)) for x in (weight, colour * weight))
        else:
            mass, mean = _halve(weight), _halve(colour * weight)
        # One known pixel of four is enough for a full weight.
        levels.append((mean / mass.clamp_min(1e-6), (4 * mass).clamp_max(1)))
    filled = levels[-1][0]
    for colour, weight in reversed(levels[:-1]):
        above = F.interpolate(filled, colour.shape[-2:], mode="bilinear", align_corners=False)
        filled = weight * colour + (1 - weight) * above
    return filled


def _halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels. At an odd border the mean is of the pixels that there are."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _halve_exporting(x: Tensor, size: tuple[int, int], level: int) -> Tensor:
    """The same for torch.export, from level - 1 to `level` of the pyramid of an image of this size.

    The last row and column are repeated, which gives the same means. A side of 1 becomes two equal rows, because
    torch.export takes a side that is 1 for a constant. The interpolation of equal rows is the same.
    """
    for axis in (0, 1):
        # Of the whole size, not of x's: expressions that grow from level to level make the export slow.
        before, after = ((size[axis] + 2**k - 1) // 2**k for k in (level - 1, level))
        pairs = 2 * torch.arange(torch.sym_max(after, 2), device=x.device).clamp_max(after - 1)
        first = x.index_select(axis + 2, pairs)
        x = (first + x.index_select(axis + 2, (pairs + 1).clamp_max(before - 1))) / 2
    return x
