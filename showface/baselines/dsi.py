"""DSI (Peng et al., *Generating Diverse Structure for Image Inpainting With Hierarchical VQ-VAE*, CVPR 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.base import BaselineConfig
from showface.baselines.deepfillv2 import EluGatedConv2d, contextual_scores, transfer_patches
from showface.baselines.pixelcnn import StructureCondition, StructureGenerator
from showface.baselines.pluralistic import Codebook, PluralisticBaseline, draw
from showface.baselines.vqvae import CODES, HierarchicalVQVAE
from showface.losses import LossWeights, reconstruction_losses
from showface.models.stages import Stage
from showface.nn.blocks import composite, pad_to_multiple

COMMITMENT_WEIGHT = 0.25
TEMPERATURE = 50.0  # factor on the cosines of the structural attention
FEATURE_WEIGHT = 0.1  # relative to L1


class TextureGenerator(nn.Module):
    """The image from the visible part and the structure codes, with structural attention.

    The attention compares the structure codes, and copies features at strides 4 and 2 from known to hidden positions.

    Args:
        channels: width at full size; twice and four times that at strides 2 and 4.
        codes: channels of a code.
    """

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        c1, c2, c4 = channels, 2 * channels, 4 * channels
        self.encode2 = nn.Sequential(
            EluGatedConv2d(5, c1, kernel=5), EluGatedConv2d(c1, c2, stride=2), EluGatedConv2d(c2, c2)
        )
        self.encode4 = EluGatedConv2d(c2, c4, stride=2)
        self.enter = nn.Sequential(EluGatedConv2d(codes, c4), EluGatedConv2d(c4, c4), *_up(c4, c4))
        self.join = nn.Sequential(
            EluGatedConv2d(2 * c4, c4), *(EluGatedConv2d(c4, c4, dilation=dilation) for dilation in (1, 2, 4, 8, 16))
        )
        self.decode4 = nn.Sequential(EluGatedConv2d(c4, c4), EluGatedConv2d(c4, c4))
        self.decode2 = nn.Sequential(EluGatedConv2d(2 * c4, c4), *_up(c4, c2))
        self.decode1 = nn.Sequential(
            EluGatedConv2d(2 * c2, c2), *_up(c2, c1), EluGatedConv2d(c1, c1), nn.Conv2d(c1, 3, 3, padding=1)
        )

    def forward(self, image: Tensor, hole: Tensor, structure: Tensor) -> Tensor:
        """(B, 3, H, W) with zeros in the hole, (B, 1, H, W), codes (B, C, H/8, W/8) -> (B, 3, H, W) in [-1, 1]."""
        x2 = self.encode2(torch.cat([image, torch.ones_like(hole), hole], dim=1))
        x4 = self.join(torch.cat([self.encode4(x2), self.enter(structure)], dim=1))
        attention = contextual_scores(structure, hole, TEMPERATURE)
        y2 = self.decode2(torch.cat([self.decode4(x4), transfer_patches(x4, attention, 2)], dim=1))
        return self.decode1(torch.cat([y2, transfer_patches(x2, attention, 4)], dim=1)).tanh()


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest"), EluGatedConv2d(inputs, outputs)]


class DSI(PluralisticBaseline):
    """Structure codes are drawn one by one, given the visible part; then a texture generator paints the image.

    Three stages of training: `vqvae`, the hierarchical VQ-VAE (mean squared error and commitment); `structure`,
    cross-entropy of the structure codes of the ground truth; `texture`, from the visible part and the structure codes
    of the ground truth: L1, and the cross-entropy of the structure and texture features of the completed image, which
    the frozen VQ-VAE computes.

    Paper's size: `channels` 128 in the VQ-VAE and the structure generator, a quarter of it in the condition network
    and half in the texture generator.

    Simplifications: no weight normalisation in the structure generator, and its attention is a residual block of its
    own; upsampling and a convolution in place of transposed convolutions in the texture generator; L1 in and outside
    the hole with MDRNets' weights; no adversarial loss by default. All structure codes are drawn, also those of
    visible positions, as in the paper.
    """

    system = "dsi"
    paper_channels = 128
    stride = 8
    stages = (
        Stage("vqvae", trains=("vqvae",)),
        Stage("structure", trains=("condition", "structure")),
        Stage("texture", trains=("texture",), paints=True),
    )

    def __init__(self, config: BaselineConfig | None = None) -> None:
        super().__init__(config)
        channels = self.config.channels
        self.vqvae = HierarchicalVQVAE(channels)
        codes = self.vqvae.code_channels
        self.condition = StructureCondition(max(1, channels // 4))
        self.structure = StructureGenerator(codes, channels, self.condition.outputs, CODES)
        self.texture = TextureGenerator(max(1, channels // 2), codes)
        self._features: tuple[Tensor, Tensor] | None = None

    def fill_once(self, image: Tensor, hole: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        uniform = torch.rand(image.shape[2] // 8, image.shape[3] // 8, generator=random).to(image.device)
        index = self.draw_structure(self.condition(image, hole), uniform)
        result = self.texture(image, hole, self.vqvae.structure.look_up(index).to(image.dtype))
        return result, result

    def draw_structure(self, condition: Tensor, uniform: Tensor) -> Tensor:
        """Draw the structure codes in reading order.

        Args:
            condition: (B, C, h, w).
            uniform: (h, w) random numbers in [0, 1).

        Returns:
            Their indices, (B, h, w) int64.
        """
        book, (height, width) = self.vqvae.structure, uniform.shape
        index = torch.zeros(len(condition), height, width, dtype=torch.int64, device=condition.device)
        codes = condition.new_zeros(len(condition), self.vqvae.code_channels, height, width)
        for y in range(height):
            # Rows below can't matter, and the codes of this row don't change `rows`.
            shown, given = codes[:, :, : y + 1], condition[:, :, : y + 1]
            rows = self.structure.row_features(shown, given)
            for x in range(width):
                features = self.structure.features(shown, given, rows)
                logits = self.structure.head(features[:, :, y : y + 1, x : x + 1])
                index[:, y, x] = draw(logits.flatten(1), uniform[y, x])
                codes[:, :, y, x] = F.embedding(index[:, y, x], book.vectors).to(codes.dtype)
        return index

    def stage_losses(self, stage: str, image: Tensor, hole: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        visible, padded_hole = self.prepare(image, hole)
        whole = pad_to_multiple(image, self.stride)
        if stage == "vqvae":
            return torch.zeros_like(image), self._vqvae_losses(whole)
        with torch.no_grad():
            structure, texture = self.vqvae.encode(whole)
        codes = self.vqvae.structure.look_up(structure).to(image.dtype)
        if stage == "structure":
            logits = self.structure(codes, self.condition(visible, padded_hole))
            return torch.zeros_like(image), {"codes": F.cross_entropy(logits.float(), structure)}
        raw = self.texture(visible, padded_hole, codes)
        features, x4 = self.vqvae.structure_features(composite(whole, padded_hole, raw))
        quantised = self.vqvae.structure.quantise(features)[0]
        losses = {
            "structure_features": _feature_loss(self.vqvae.structure, features, structure),
            "texture_features": _feature_loss(self.vqvae.texture, self.vqvae.texture_features(quantised, x4), texture),
        }
        raw = raw[..., : image.shape[2], : image.shape[3]]
        return raw, reconstruction_losses(raw, raw, image, hole) | losses

    def _vqvae_losses(self, image: Tensor) -> dict[str, Tensor]:
        vqvae = self.vqvae
        features, x4 = vqvae.structure_features(image)
        structure, _, structure_distance = vqvae.structure.quantise(features)
        textures = vqvae.texture_features(structure, x4)
        texture, _, texture_distance = vqvae.texture.quantise(textures)
        self._features = features.detach(), textures.detach()
        decoded = vqvae.decode(structure, texture)
        return {
            "autoencoder": F.mse_loss(decoded.float(), image.float()),
            "commitment": structure_distance + texture_distance,
        }

    def update_memory(self) -> None:
        """Move the codebooks towards the features of the last batch, in the VQ-VAE's stage."""
        if self._features is not None:
            for book, features in zip((self.vqvae.structure, self.vqvae.texture), self._features, strict=True):
                book.update(features.movedim(1, -1).flatten(0, 2))
            self._features = None

    def loss_weights(self, weights: LossWeights) -> dict[str, float]:
        features = FEATURE_WEIGHT * weights.hole
        own = {"autoencoder": 1.0, "commitment": COMMITMENT_WEIGHT, "codes": 1.0}
        return weights.by_name() | own | {"structure_features": features, "texture_features": features}


def _feature_loss(book: Codebook, features: Tensor, index: Tensor) -> Tensor:
    """Cross-entropy between the codes' probabilities, which fall with their distance, and the true codes, 0-d."""
    return F.cross_entropy(-book.distances(features.movedim(1, -1).flatten(0, 2)), index.flatten())
