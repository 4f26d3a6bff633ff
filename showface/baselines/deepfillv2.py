"""DeepFillv2 (Yu et al., *Free-Form Image Inpainting with Gated Convolution*, ICCV 2019)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from showface.baselines.base import Baseline, BaselineConfig
from showface.nn import GatedConv2d
from showface.nn.blocks import composite
from showface.nn.tokens import pool_hole


class EluGatedConv2d(GatedConv2d):
    """A gated convolution with the paper's activation: ELU(features) * sigmoid(gate)."""

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.conv(x).chunk(2, dim=1)
        return F.elu(features) * gate.sigmoid()


class ContextualAttention(nn.Module):
    """Rebuild a feature map from patches of its known part (Yu et al., CVPR 2018).

    The map is halved. The score of two positions is the cosine of their 3x3 patches; patches that contain a corrupted
    position can't be copied. Scores are then summed over neighbours along both diagonals (first x, then y), so that
    neighbours copy from neighbours. Their softmax weights the 4x4 patches of the full-size map, and overlapping
    patches are added.

    Args:
        temperature: factor on the cosines.
    """

    def __init__(self, temperature: float = 10.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        """(B, C, h, w) with even h, w, and its hole (B, 1, H, W) at any size, 1 = corrupted -> (B, C, h, w)."""
        half = F.interpolate(x, (x.shape[2] // 2, x.shape[3] // 2), mode="nearest")
        attention = contextual_scores(half, hole, self.temperature)
        return transfer_patches(x, attention, 2)


class DeepFillv2(Baseline):
    """A coarse network of dilated gated convolutions, then a refinement network with a contextual attention branch.

    Paper's size: `channels` 48, counted as in the paper's code: before gating, which halves them. 4.1 M parameters by
    default.

    Simplifications: only L1 on both stages (no SN-PatchGAN, which gives the paper's results much of their sharpness);
    the hole is resized to the attention's size to find known patches; summing scores along diagonals does not wrap
    from the end of one row to the next.
    """

    system = "deepfillv2"
    paper_channels = 48
    stride = 8  # stride 4 in the networks, times 2 in the attention

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        c = max(2, self.config.channels // 2)
        self.coarse = nn.Sequential(
            EluGatedConv2d(4, c, kernel=5),
            EluGatedConv2d(c, 2 * c, stride=2),
            EluGatedConv2d(2 * c, 2 * c),
            EluGatedConv2d(2 * c, 4 * c, stride=2),
            *_flat(4 * c, dilations=(1, 1, 2, 4, 8, 16, 1, 1)),
            *_decode(c),
        )
        self.convolutions = nn.Sequential(
            EluGatedConv2d(4, c, kernel=5),
            EluGatedConv2d(c, c, stride=2),
            EluGatedConv2d(c, 2 * c),
            EluGatedConv2d(2 * c, 2 * c, stride=2),
            EluGatedConv2d(2 * c, 4 * c),
            *_flat(4 * c, dilations=(1, 2, 4, 8, 16)),
        )
        self.before_attention = nn.Sequential(
            EluGatedConv2d(4, c, kernel=5),
            EluGatedConv2d(c, c, stride=2),
            EluGatedConv2d(c, 2 * c),
            EluGatedConv2d(2 * c, 4 * c, stride=2),
            *_flat(4 * c, dilations=(1, 1)),
        )
        self.attention = ContextualAttention()
        self.after_attention = nn.Sequential(*_flat(4 * c, dilations=(1, 1)))
        self.join = nn.Sequential(EluGatedConv2d(8 * c, 4 * c), EluGatedConv2d(4 * c, 4 * c), *_decode(c))

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.coarse(torch.cat([image, hole], dim=1)).tanh()
        x = torch.cat([composite(image, hole, coarse), hole], dim=1)
        attended = self.after_attention(self.attention(self.before_attention(x), hole))
        result = self.join(torch.cat([self.convolutions(x), attended], dim=1)).tanh()
        return result, coarse


def transfer_patches(x: Tensor, attention: Tensor, factor: int) -> Tensor:
    """Rebuild (B, C, h, w) from its patches by the attention (B, N, N) of a map that is smaller by an even factor."""
    patches = F.unfold(x, 2 * factor, padding=factor // 2, stride=factor)  # (B, 4 * factor^2 * C, N)
    # Four patches cover a position away from the border. The paper divides by four everywhere.
    return F.fold(patches @ attention.mT.to(x.dtype), x.shape[2:], 2 * factor, padding=factor // 2, stride=factor) / 4


def contextual_scores(x: Tensor, hole: Tensor, temperature: float) -> Tensor:
    """Which known patches of a feature map resemble the patch at each position.

    The cosines of 3x3 patches are summed over neighbours along both diagonals, and their softmax is taken over the
    patches without a corrupted position.

    Args:
        x: (B, C, h, w).
        hole: (B, 1, H, W) at any size, 1 = corrupted.
        temperature: factor on the cosines.

    Returns:
        (B, h*w, h*w); the rows sum to 1.
    """
    height, width = x.shape[2:]
    scores = temperature * patch_cosines(x)
    grid = rearrange(scores, "b (qy qx) (ky kx) -> b qy qx ky kx", qy=height, ky=height)
    grid = _sum_diagonal(_sum_diagonal(grid, 2, 4), 1, 3)
    scores = rearrange(grid, "b qy qx ky kx -> b (qy qx) (ky kx)")
    corrupted = F.max_pool2d(pool_hole(hole, height, width), 3, stride=1, padding=1) > 0.5
    corrupted = corrupted.flatten(1)  # (B, N): the patch contains a corrupted position
    corrupted = corrupted & ~corrupted.all(1, keepdim=True)  # if all patches are corrupted, allow all
    return scores.masked_fill(corrupted[:, None], -torch.inf).softmax(2)


def patch_cosines(x: Tensor) -> Tensor:
    """The cosines between all 3x3 patches of a zero-padded feature map: (B, C, h, w) -> (B, h*w, h*w)."""
    unit = F.normalize(F.unfold(x, 3, padding=1), dim=1)
    return unit.mT @ unit


def _sum_diagonal(grid: Tensor, first: int, second: int) -> Tensor:
    """Add to each entry its two neighbours on the diagonal of two dimensions; those outside count as 0."""
    rest = grid.shape[first] - 1

    def without_one(x: Tensor, start: int) -> Tensor:
        return x.narrow(first, start, rest).narrow(second, start, rest)

    total = grid.clone()
    without_one(total, 1).add_(without_one(grid, 0))
    without_one(total, 0).add_(without_one(grid, 1))
    return total


def _flat(width: int, dilations: tuple[int, ...]) -> list[nn.Module]:
    return [EluGatedConv2d(width, width, dilation=dilation) for dilation in dilations]


def _decode(c: int) -> list[nn.Module]:
    """From 4 c channels at stride 4 to a full-size image."""
    return [
        nn.Upsample(scale_factor=2, mode="nearest"),
        EluGatedConv2d(4 * c, 2 * c),
        EluGatedConv2d(2 * c, 2 * c),
        nn.Upsample(scale_factor=2, mode="nearest"),
        EluGatedConv2d(2 * c, c),
        EluGatedConv2d(c, c // 2),
        nn.Conv2d(c // 2, 3, 3, padding=1),
    ]
