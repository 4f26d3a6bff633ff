"""What a discriminator and what it judges learn from each other: the hinge loss (Lim & Ye, 2017; Miyato et al., 2018).

With a hole both losses are means over the patches that it touches, a choice of *ours*. The rest of a composite is
real: to call it filled in can't be learned, and would make losses depend on how large holes are. A patch here is what
a logit covers without its neighbours.
"""

import torch.nn.functional as F
from torch import Tensor

from showface.losses import batch_mean


def discriminator_loss(real: Tensor, fake: Tensor, hole: Tensor | None = None) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake), 0-d float32; what is judged as `fake` must be detached from its network.

    Args:
        real, fake: logits (B, 1, h, w) of real and filled in images, in any floating dtype.
        hole: (B, 1, H, W), 1 = filled in: only patches that it touches count; 0 where it is empty. None: all count.
    """
    return _mean(F.relu(1 - real.float()), hole) + _mean(F.relu(1 + fake.float()), hole)


def generator_loss(fake: Tensor, hole: Tensor | None = None) -> Tensor:
    """-fake, 0-d float32; arguments as above."""
    return -_mean(fake.float(), hole)


def _mean(values: Tensor, hole: Tensor | None) -> Tensor:
    if hole is None:
        return values.mean()
    touched = F.adaptive_max_pool2d(hole.float(), values.shape[2:])
    return batch_mean((values * touched).sum(), touched.sum())
