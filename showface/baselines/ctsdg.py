"""CTSDG (Guo et al., *Image Inpainting via Conditional Texture and Structure Dual Generation*, ICCV 2021).

It uses partial convolutions: see `pconv.py` about patents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import Baseline, BaselineConfig, count_strides
from showface.baselines.deepfillv2 import patch_cosines
from showface.baselines.pconv import PartialDecoder, PartialEncoder
from showface.losses import LossWeights, reconstruction_losses
from showface.models.output import InpaintingOutput
from showface.nn import ResidualBlock, push_pull_fill
from showface.nn.blocks import activate, upsample

EDGE_THRESHOLD = 0.06  # smallest gradient of an edge, in grey values per pixel
TEMPERATURE = 10.0  # factor on the cosines of the contextual aggregation
STRUCTURE_WEIGHT = 0.6  # a tenth of the default weight of the hole loss, as in the paper


class BidirectionalFusion(nn.Module):
    """Bi-directional gated feature fusion (Bi-GFF): each stream adds the gated features of the other.

        F_t' = F_t + alpha * gate_t * F_s,    F_s' = F_s + beta * gate_s * F_t

    Both gates are computed from both streams. `alpha` and `beta` are learnt and start at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.texture_gate = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.structure_gate = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, texture: Tensor, structure: Tensor) -> Tensor:
        """(B, channels, h, w) twice -> (B, 2 channels, h, w)."""
        both = torch.cat([texture, structure], dim=1)
        to_texture, to_structure = self.texture_gate(both).sigmoid(), self.structure_gate(both).sigmoid()
        return torch.cat(
            [texture + self.alpha * to_texture * structure, structure + self.beta * to_structure * texture], dim=1
        )


class ContextualAggregation(nn.Module):
    """Contextual feature aggregation (CFA): rebuild a map from its own 3x3 patches, then mix four scales.

    Each patch becomes the mean of all patches, weighted by the softmax of their cosines. Convolutions of the rebuilt
    map with dilations 1, 2, 4 and 8 are then mixed by weights that the network predicts for each position.
    """

    dilations = (1, 2, 4, 8)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in self.dilations)
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, len(self.dilations), 1)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, h, w), the same out
        attention = (TEMPERATURE * patch_cosines(x)).softmax(2)
        rebuilt = F.fold(F.unfold(x, 3, padding=1) @ attention.mT, x.shape[2:], 3, padding=1) / 9
        weights = self.mix(rebuilt).softmax(1)
        total = torch.zeros_like(rebuilt)
        for i, scale in enumerate(self.scales):
            total = total + weights[:, i : i + 1] * activate(scale(rebuilt))
        return total


class CTSDG(Baseline):
    """Two coupled partial convolution U-Nets, for texture and for structure, then Bi-GFF and CFA.

    The texture decoder starts from the deepest structure features and the structure decoder from the deepest texture
    features; each has skip connections from its own encoder. The texture features also give the coarse image, and the
    structure features an edge map, which has its own loss, `structure`.

    Paper's size: `channels` 64, for images of 256 with seven strides of 2; here there are as many strides as reduce
    `image_size` to 2x2. 52.2 M parameters by default.

    Simplifications: no discriminators, no perceptual and style loss. `edge_map` replaces the external edge detector.
    The network's input edges are computed from the push-pull fill and kept at known pixels only, so they don't depend
    on pixels in the hole. The CFA works at stride 4 (*ours*) and divides by nine everywhere.
    """

    system = "ctsdg"
    paper_channels = 64

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        c = self.config.channels
        strides = count_strides(self.config.image_size, smallest=2)
        self.stride = 2**strides
        self.texture_encoder = PartialEncoder(3, c, strides)
        self.structure_encoder = PartialEncoder(2, c, strides)
        self.texture_decoder = PartialDecoder(self.texture_encoder.widths, c)
        self.structure_decoder = PartialDecoder(self.structure_encoder.widths, c)
        self.to_coarse = nn.Sequential(ResidualBlock(c), nn.Conv2d(c, 3, 1))
        self.to_edges = nn.Sequential(ResidualBlock(c), nn.Conv2d(c, 1, 1))
        self.fusion = BidirectionalFusion(c)
        self.down = nn.Sequential(
            nn.Conv2d(2 * c, c, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(c, c, 3, stride=2, padding=1)
        )
        self.aggregation = ContextualAggregation(c)
        self.to_image = nn.Conv2d(3 * c, 3, 3, padding=1)

    def fill(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        return self.streams(image, hole)[:2]

    def streams(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two results of `fill`, and the edge logits (B, 1, H, W)."""
        known = 1 - hole
        textures = self.texture_encoder(image, known)
        structures = self.structure_encoder(known_structure(image, hole), known)
        texture = activate(self.texture_decoder(structures[-1], textures[:-1]))
        structure = activate(self.structure_decoder(textures[-1], structures[:-1]))
        fused = self.fusion(texture, structure)
        context = upsample(upsample(self.aggregation(self.down(fused))))
        result = self.to_image(torch.cat([fused, context], dim=1)).tanh()
        return result, self.to_coarse(texture).tanh(), self.to_edges(structure)

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        result, coarse, edges = self.streams(*self.prepare(image, hole))
        output = self.finish(image, hole, result, coarse)
        losses = reconstruction_losses(output.raw_image, output.raw_coarse, image, hole)
        edges = edges[..., : image.shape[2], : image.shape[3]].float()
        losses["structure"] = F.binary_cross_entropy_with_logits(edges, edge_map(image))
        return output, losses

    def loss_weights(self, weights: LossWeights) -> dict[str, float]:
        return weights.by_name() | {"structure": STRUCTURE_WEIGHT}


def known_structure(image: Tensor, hole: Tensor) -> Tensor:
    """The input of the structure stream: grey values and edges, (B, 2, H, W), 0 in the hole."""
    # Take the edges of the fill. The blanked image would also give the outline of the hole.
    filled = push_pull_fill(image, hole)
    return torch.cat([_grey(image), edge_map(filled)], dim=1) * (1 - hole)


def edge_map(image: Tensor) -> Tensor:
    """Thin edges, similar to Canny: smoothing, Sobel, non-maximum suppression, one threshold.

    Args:
        image: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, 1, H, W) of 0 and 1.
    """
    across = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    smooth = image.new_tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16

    def convolve(x: Tensor, *kernels: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.stack(kernels)[:, None])

    with torch.autocast(image.device.type, enabled=False):  # half precision would make the differences noisy
        gradient = convolve(convolve(_grey(image), smooth), across, across.T)  # (B, 2, H, W): along x, along y
    strength = gradient.square().sum(1, keepdim=True).sqrt()
    steepness = strength.clamp_min(1e-6)
    # The neighbours one pixel up and one pixel down the gradient, in the nearest of eight directions.
    step = (gradient / steepness).round()
    padded = F.pad(strength, (1, 1, 1, 1))
    height, width = strength.shape[2:]
    y = torch.arange(1, height + 1, device=image.device)[:, None]
    x = torch.arange(1, width + 1, device=image.device)
    column, row = x + step[:, :1].long(), y + step[:, 1:].long()
    flat, wide = padded.flatten(2), width + 2
    ahead = flat.gather(2, (row * wide + column).flatten(2)).view_as(strength)
    behind = flat.gather(2, ((2 * y - row) * wide + 2 * x - column).flatten(2)).view_as(strength)
    return ((strength >= EDGE_THRESHOLD) & (strength >= ahead) & (strength > behind)).to(image.dtype)


def _grey(image: Tensor) -> Tensor:
    """Luminance: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = image.new_tensor([0.299, 0.587, 0.114])
    return (image * weights[:, None, None]).sum(1, keepdim=True)
