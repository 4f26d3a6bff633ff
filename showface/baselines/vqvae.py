"""The hierarchical VQ-VAE of DSI: structure codes at stride 8 and texture codes at stride 4."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showface.baselines.pluralistic import Codebook

CODES = 512
DECAY = 0.99


class EluResidual(nn.Module):
    """x + a 3x3 and a 1x1 convolution, each after an ELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.elu(self.first(F.elu(x))))


def _down(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)


def _up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)


class HierarchicalVQVAE(nn.Module):
    """Encodes an image into structure codes (stride 8) and texture codes (stride 4), and decodes them.

    As in VQ-VAE-2 (Razavi et al. 2019), the texture features are computed from the encoder's features at stride 4 and
    from the decoded structure codes, so that they only add what the structure lacks.

    Args:
        channels: width; codes have half as many channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.code_channels = half

        def refine() -> nn.Sequential:
            return nn.Sequential(EluResidual(channels, half), EluResidual(channels, half), nn.ELU())

        self.encode4 = nn.Sequential(
            _down(3, half),
            nn.ELU(),
            _down(half, channels),
            nn.ELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            refine(),
        )
        self.encode8 = nn.Sequential(
            _down(channels, half),
            nn.ELU(),
            nn.Conv2d(half, channels, 3, padding=1),
            refine(),
            nn.Conv2d(channels, half, 1),
        )
        self.decode8 = nn.Sequential(nn.Conv2d(half, channels, 3, padding=1), refine(), _up(channels, channels))
        self.join4 = nn.Conv2d(2 * channels, half, 1)
        self.structure = Codebook(CODES, half, DECAY)
        self.texture = Codebook(CODES, half, DECAY)
        self.up4 = _up(half, half)
        self.decode4 = nn.Sequential(
            nn.Conv2d(2 * half, channels, 3, padding=1), refine(), _up(channels, half), nn.ELU(), _up(half, 3)
        )

    def structure_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the features before quantisation at stride 8, (B, C, h, w), and those at stride 4."""
        x4 = self.encode4(image)
        return self.encode8(x4), x4

    def texture_features(self, structure: Tensor, x4: Tensor) -> Tensor:
        """The texture features before quantisation, (B, C, 2h, 2w), from the structure codes (B, C, h, w)."""
        return self.join4(torch.cat([x4, self.decode8(structure)], dim=1))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of the structure codes (B, H/8, W/8) and of the texture codes (B, H/4, W/4)."""
        features, x4 = self.structure_features(image)
        structure, index, _ = self.structure.quantise(features)
        return index, self.texture.nearest(self.texture_features(structure, x4))

    def decode(self, structure: Tensor, texture: Tensor) -> Tensor:
        """The image (B, 3, H, W) of structure codes (B, C, H/8, W/8) and texture codes (B, C, H/4, W/4)."""
        return self.decode4(torch.cat([texture, self.up4(structure)], dim=1))
