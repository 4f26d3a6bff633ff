"""DSI's structure generator: a conditional autoregressive network over a map of codes, with causal attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.pluralistic import attend

BLOCKS = 20
ATTENTIONS = 4
OUTPUT_BLOCKS = 20
HEADS = 8
DROPOUT = 0.1


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x: (B, C, h, w) -> (B, 2C, h, w)."""
    return F.elu(torch.cat([x, -x], dim=1))


class CausalConv2d(nn.Conv2d):
    """A convolution that sees the row above and its own row.

    Args:
        sees_right: whether it sees one column to the right; one to the left it always sees.
    """

    def __init__(self, inputs: int, outputs: int, sees_right: bool) -> None:
        super().__init__(inputs, outputs, (2, 3 if sees_right else 2))
        self.margins = (1, int(sees_right), 1, 0)  # left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins))


def shift_down(x: Tensor) -> Tensor:
    """Each row gets the row above it, and the first row gets 0."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Each column gets the column to its left, and the first column gets 0."""
    return F.pad(x, (1, 0))[..., :-1]


class ConditionedResidual(nn.Module):
    """x + features * sigmoid(gate), both from two convolutions; optionally with two more inputs.

    Args:
        channels: width.
        kind: "full" for 3x3, "pointwise" for 1x1, "rows" and "pixels" for `CausalConv2d` with and without the right
            column.
        dilation: of a full convolution.
        beside: channels of a second input, added after the first convolution; 0 for none.
        condition: channels of a condition, added to features and gate; 0 for none.
    """

    def __init__(self, channels: int, kind: str, dilation: int = 1, beside: int = 0, condition: int = 0) -> None:
        super().__init__()

        def convolve(inputs: int, outputs: int) -> nn.Conv2d:
            if kind == "full":
                return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
            if kind == "pointwise":
                return nn.Conv2d(inputs, outputs, 1)
            return CausalConv2d(inputs, outputs, sees_right=kind == "rows")

        self.first, self.second = convolve(2 * channels, channels), convolve(2 * channels, 2 * channels)
        self.beside = nn.Conv2d(2 * beside, channels, 1) if beside else None
        self.condition = nn.Conv2d(condition, 2 * channels, 1) if condition else None
        with torch.no_grad():
            self.second.weight *= 0.1  # the block starts close to x

    def forward(self, x: Tensor, beside: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        hidden = self.first(concat_elu(x))
        if self.beside is not None and beside is not None:
            hidden = hidden + self.beside(concat_elu(beside))
        hidden = self.second(F.dropout(concat_elu(hidden), DROPOUT, self.training))
        if self.condition is not None and condition is not None:
            hidden = hidden + self.condition(condition)
        return x + F.glu(hidden, dim=1)


class CausalAttention(nn.Module):
    """Each position attends to itself and to all positions before it in reading order; added to the input.

    Its input at a position must not depend on the code at that position.
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.heads = math.gcd(HEADS, channels)
        self.qkv = nn.Conv2d(channels + condition, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        qkv = self.qkv(torch.cat([x, condition], dim=1)).flatten(2)  # (B, 3C, N)
        query, key, value = qkv.unflatten(1, (3, self.heads, -1)).permute(1, 0, 2, 4, 3)
        attended = attend(query, key, value, is_causal=True)  # (B, heads, N, C / heads)
        return x + self.project(attended.transpose(2, 3).flatten(1, 2).view_as(x))


class StructureCondition(nn.Module):
    """Features of the visible part of an image at stride 8, the condition of the structure generator.

    Args:
        channels: width at full size; it doubles at each of three strides.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(5, channels, 5, padding=2), ConditionedResidual(channels, "full")]
        for width in (channels, 2 * channels, 4 * channels):
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)]
            if width < 4 * channels:
                layers += [ConditionedResidual(2 * width, "full")]
        self.outputs = 8 * channels
        layers += [ConditionedResidual(self.outputs, "full", dilation) for dilation in (1, 1, 1, 2, 4, 8, 16, 1, 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """(B, 3, H, W) with zeros in the hole, and (B, 1, H, W) -> (B, outputs, H/8, W/8)."""
        return self.layers(torch.cat([image, torch.ones_like(hole), hole], dim=1))


class StructureGenerator(nn.Module):
    """The distribution of each code of a map, given the codes before it in reading order and a condition.

    Two streams as in PixelCNN++ (Salimans et al. 2017): one sees the rows above, the other one also the codes to the
    left. After every fifth block the second one attends to all earlier positions, as in PixelSNAIL (Chen et al. 2018).

    Args:
        inputs: channels of a code.
        channels: width.
        condition: channels of the condition.
        codes: number of codes.
    """

    def __init__(self, inputs: int, channels: int, condition: int, codes: int) -> None:
        super().__init__()
        self.rows_in = nn.Conv2d(inputs + 1, channels, (2, 3))
        self.above_in = nn.Conv2d(inputs + 1, channels, (1, 3), padding=(0, 1))
        self.left_in = nn.Conv2d(inputs + 1, channels, (2, 1))
        self.rows = nn.ModuleList(ConditionedResidual(channels, "rows", condition=condition) for _ in range(BLOCKS))
        self.pixels = nn.ModuleList(
            ConditionedResidual(channels, "pixels", beside=channels, condition=condition) for _ in range(BLOCKS)
        )
        self.attentions = nn.ModuleList(CausalAttention(channels, condition) for _ in range(ATTENTIONS))
        output = [ConditionedResidual(channels, "pointwise") for _ in range(OUTPUT_BLOCKS)]
        self.head = nn.Sequential(*output, nn.ELU(), nn.Conv2d(channels, codes, 1))

    def row_features(self, codes: Tensor, condition: Tensor) -> list[Tensor]:
        """The first stream after each block, (B, channels, h, w). A row depends on the codes of the rows above it.

        Args:
            codes: (B, C, h, w).
            condition: (B, condition, h, w).
        """
        x = shift_down(self.rows_in(F.pad(_marked(codes), (1, 1, 1, 0))))
        rows = []
        for block in self.rows:
            x = block(x, condition=condition)
            rows.append(x)
        return rows

    def features(self, codes: Tensor, condition: Tensor, rows: list[Tensor]) -> Tensor:
        """The second stream, (B, channels, h, w). A position depends on the codes before it; `head` gives its logits.

        Args:
            codes, condition, rows: arguments and result of `row_features`.
        """
        x = _marked(codes)
        x = shift_down(self.above_in(x)) + shift_right(self.left_in(F.pad(x, (0, 0, 1, 0))))
        for number, (block, row) in enumerate(zip(self.pixels, rows, strict=True), start=1):
            x = block(x, row, condition)
            if number % (BLOCKS // ATTENTIONS) == 0:
                x = self.attentions[number // (BLOCKS // ATTENTIONS) - 1](x, condition)
        return x

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """The logits (B, K, h, w) of codes (B, C, h, w)."""
        return self.head(self.features(codes, condition, self.row_features(codes, condition)))


def _marked(codes: Tensor) -> Tensor:
    """Codes with a channel of ones, which tells them from padding: (B, C, h, w) -> (B, C + 1, h, w)."""
    return torch.cat([codes, torch.ones_like(codes[:, :1])], dim=1)
