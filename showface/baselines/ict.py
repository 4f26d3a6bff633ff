"""ICT (Wan et al., *High-Fidelity Pluralistic Image Completion with Transformers*, ICCV 2021)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import BaselineConfig
from showface.baselines.pluralistic import Codebook, PluralisticBaseline, attend, draw
from showface.losses import LossWeights, batch_mean, reconstruction_losses
from showface.models.stages import Stage
from showface.nn.blocks import pad_to_multiple

COLOURS = 512
LAYERS = 30
HEADS = 8
TOP = 50
UPSAMPLER_BLOCKS = 8  # residual blocks at stride 4
# The paper's low-resolution images of faces have 48 pixels a side, for images of 256.
GRID, GRID_OF = 48, 256


class TransformerBlock(nn.Module):
    """Self-attention over all tokens, then a perceptron, each after layer normalisation and added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = math.gcd(HEADS, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        for linear in (self.qkv, self.project, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, channels), the same out
        query, key, value = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(query, key, value)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        hidden = self.up(self.norm2(x))
        return x + self.down(hidden * torch.sigmoid(1.702 * hidden))  # the paper's approximation of GELU


class ColourTransformer(nn.Module):
    """Predicts the colours of masked pixels from all other pixels, before and after them.

    Args:
        channels: width.
        length: number of pixels.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.colours = nn.Embedding(COLOURS + 1, channels)  # the last one stands for a masked pixel
        self.positions = nn.Parameter(0.02 * torch.randn(length, channels))
        self.blocks = nn.ModuleList(TransformerBlock(channels) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(channels)
        self.to_logits = nn.Linear(channels, COLOURS, bias=False)
        nn.init.normal_(self.colours.weight, std=0.02)

    def features(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """(B, L) int64 and (B, L) bool -> (B, L, channels); `to_logits` gives their logits."""
        x = self.colours(tokens.masked_fill(masked, COLOURS)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """(B, L) int64, of which those with `masked` (B, L) bool are ignored -> logits (B, L, COLOURS)."""
        return self.to_logits(self.features(tokens, masked))


class DilatedResidual(nn.Module):
    """x + two 3x3 convolutions, the first with dilation 2, each with instance normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Instance normalisation would cancel a bias.
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolutions(x)


class GuidedUpsampler(nn.Module):
    """The full-size image from the visible part and the low-resolution appearance prior.

    Args:
        channels: width at full size; twice and four times that at strides 2 and 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c1, c2, c4 = channels, 2 * channels, 4 * channels

        def convolve(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
            return [conv, nn.InstanceNorm2d(outputs), nn.ReLU()]

        self.layers = nn.Sequential(
            *convolve(7, c1, 7),
            *convolve(c1, c2, 3, stride=2),
            *convolve(c2, c4, 3, stride=2),
            *(DilatedResidual(c4) for _ in range(UPSAMPLER_BLOCKS)),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *convolve(c4, c2, 3),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *convolve(c2, c1, 3),
            nn.Conv2d(c1, 3, 7, padding=3),
        )

    def forward(self, image: Tensor, hole: Tensor, prior: Tensor) -> Tensor:
        """(B, 3, H, W) with zeros in the hole, (B, 1, H, W), (B, 3, H, W) -> (B, 3, H, W) in [-1, 1]."""
        return self.layers(torch.cat([image, hole, prior], dim=1)).tanh()


class ICT(PluralisticBaseline):
    """A transformer draws a low-resolution image in 512 colours; a convolutional network makes it large and sharp.

    Three stages of training: `palette`, k-means of the colours of low-resolution training images; `transformer`,
    cross-entropy of the masked pixels, which are predicted from all visible pixels; `upsampler`, L1 from the visible
    image and the quantised low-resolution image of the ground truth. Inference masks all low-resolution pixels that the
    hole touches, and draws them one by one, in reading order, from the 50 most probable colours; each draw sees all
    known and all drawn pixels. The coarse image is the drawn image, interpolated.

    Paper's size for faces: `channels` 512, 30 layers and 8 heads, and an upsampler with an eighth of `channels`, for
    48x48 pixels at 256. Here the low-resolution image has the same ratio to `image_size`, and images of all sizes and
    shapes are squeezed into it.

    Simplifications: the palette comes from the training images, not from ImageNet; pixels are averaged over areas
    instead of interpolated; a pixel is masked if the hole touches it at all; the losses in and outside the hole have
    MDRNets' weights; no adversarial loss by default. No dropout.
    """

    system = "ict"
    paper_channels = 512
    stride = 8
    # The shares are ours. The paper trains both networks until they converge.
    stages = (
        Stage("palette", 0.02, trains=()),
        Stage("transformer", 0.6, trains=("transformer",)),
        Stage("upsampler", 0.38, trains=("upsampler",), paints=True),
    )

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        self.grid = max(2, round(self.config.image_size * GRID / GRID_OF))
        self.palette = Codebook(COLOURS, 3, decay=1)
        self.transformer = ColourTransformer(self.config.channels, self.grid**2)
        self.upsampler = GuidedUpsampler(max(1, self.config.channels // 8))
        self._pixels: Tensor | None = None

    def fill_once(self, image: Tensor, hole: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        uniform = torch.rand(self.grid**2, generator=random).to(image.device)
        tokens = self.draw_tokens(self.tokens(image), self.masked(hole), uniform)
        prior = self.prior(tokens, image)
        return self.upsampler(image, hole, prior), prior

    def tokens(self, image: Tensor) -> Tensor:
        """The nearest colours of the low-resolution image: (B, 3, H, W) -> (B, L) int64."""
        return self.palette.nearest(self.shrink(image)).flatten(1)

    def shrink(self, image: Tensor) -> Tensor:
        """The low-resolution image (B, 3, grid, grid) of (B, 3, H, W)."""
        return F.adaptive_avg_pool2d(image, self.grid)

    def masked(self, hole: Tensor) -> Tensor:
        """The low-resolution pixels that the hole touches: (B, 1, H, W) -> (B, L) bool."""
        return F.adaptive_max_pool2d(hole, self.grid).flatten(1) > 0.5

    def prior(self, tokens: Tensor, image: Tensor) -> Tensor:
        """The low-resolution image of (B, L) tokens, interpolated to the size of `image` (B, 3, H, W)."""
        small = self.palette.look_up(tokens.view(-1, self.grid, self.grid)).to(image.dtype)
        return F.interpolate(small, image.shape[2:], mode="bilinear", align_corners=False)

    def draw_tokens(self, tokens: Tensor, masked: Tensor, uniform: Tensor) -> Tensor:
        """Replace the masked tokens one by one.

        Args:
            tokens: (B, L) int64.
            masked: (B, L) bool.
            uniform: (L,) random numbers in [0, 1), one for each position.
        """
        tokens, masked, row = tokens.clone(), masked.clone(), torch.arange(len(tokens), device=tokens.device)
        order = masked.int().argsort(dim=1, descending=True, stable=True)  # masked positions first, in reading order
        counts = masked.sum(1)
        for step in range(int(counts.max())):
            place, active = order[:, step], step < counts
            features = self.transformer.features(tokens, masked)[row, place]
            drawn = draw(self.transformer.to_logits(features), uniform[place], TOP)
            tokens[row, place] = torch.where(active, drawn, tokens[row, place])
            masked[row, place] = False
        return tokens

    def stage_losses(self, stage: str, image: Tensor, hole: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        visible, padded_hole = self.prepare(image, hole)
        whole = pad_to_multiple(image, self.stride)
        if stage == "palette":
            self._pixels = self.shrink(whole).movedim(1, -1).flatten(0, 2)
            return torch.zeros_like(image), {"palette": self.palette.distances(self._pixels).min(1).values.mean()}
        tokens = self.tokens(whole)
        if stage == "transformer":
            masked = self.masked(padded_hole)
            logits = self.transformer(tokens, masked).float()
            entropy = F.cross_entropy(logits.movedim(2, 1), tokens, reduction="none") * masked
            return torch.zeros_like(image), {"tokens": batch_mean(entropy.sum(), masked.sum())}
        raw = self.upsampler(visible, padded_hole, self.prior(tokens, visible))
        raw = raw[..., : image.shape[2], : image.shape[3]]
        return raw, reconstruction_losses(raw, raw, image, hole)

    def update_memory(self) -> None:
        """Move the palette towards the colours of the last batch, in its stage."""
        if self._pixels is not None:
            self.palette.update(self._pixels)
            self._pixels = None

    def loss_weights(self, weights: LossWeights) -> dict[str, float]:
        return weights.by_name() | {"palette": 1.0, "tokens": 1.0}
