"""What the frozen network and the discriminator see of an image: shifted by some pixels, and enlarged at the hole."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = 8
ZOOM = 2


def shift_at(step: int) -> tuple[int, int]:
    """The offset, down and to the right, of the images at a step: all SHIFTS x SHIFTS offsets in turn. *Ours*.

    The frozen network and the discriminator have strides, and the generator works on a grid of 4 x 4 pixels. With a
    fixed offset the generator learnt a pattern of dots that the strides skip.
    """
    return step % SHIFTS, step // SHIFTS % SHIFTS


def zoom_at(hole: Tensor, share: float) -> Tensor | None:
    """Choose the images to enlarge, and the place of each: a random pixel of its hole. *Ours*.

    An iris of an image of 256 pixels is as small as one cell of a feature map with stride 8. Enlarged, it has four.

    Args:
        hole: (B, 1, H, W), 1 = corrupted.
        share: the probability of each image. With 0 no random number is drawn.

    Returns:
        For `viewed`: (B, 2, 3), the affine map from each view to its image, as `F.affine_grid` takes it. None for a
        share of 0.
    """
    if not share:
        return None
    count, (height, width) = len(hole), hole.shape[2:]
    pixel = (hole.flatten(1) * (1 + torch.rand_like(hole.flatten(1)))).argmax(1)
    middle = torch.stack([(pixel % width + 0.5) / width, (pixel // width + 0.5) / height], dim=1) * 2 - 1
    reach = 1 - 1 / ZOOM  # so that the part lies within the image
    part = torch.cat([torch.eye(2).expand(count, 2, 2) / ZOOM, middle.clamp(-reach, reach)[..., None]], dim=2)
    whole = torch.eye(2, 3).expand_as(part)
    return torch.where(torch.rand(count, 1, 1) < share, part, whole)


def viewed(images: Sequence[Tensor], hole: Tensor, shift: tuple[int, int], zoom: Tensor | None = None) -> list[Tensor]:
    """Images (B, C, H, W) and last their hole (B, 1, H, W), enlarged at the places of `zoom` and then shifted.

    Args:
        shift: of `shift_at`. Pixels that leave re-enter at the opposite side.
        zoom: of `zoom_at`; None leaves all images whole.
    """
    views = [*images, hole]
    if zoom is not None:
        # Not in half precision, which has too few digits for the places of 256 pixels.
        with torch.autocast(hole.device.type, enabled=False):
            grid = F.affine_grid(zoom.to(hole), list(hole.shape), align_corners=False)
            modes = ["bilinear"] * len(images) + ["nearest"]
            views = [
                F.grid_sample(x, grid, mode, padding_mode="border", align_corners=False)
                for x, mode in zip(views, modes, strict=True)
            ]
    return [torch.roll(x, shift, (2, 3)) for x in views]
