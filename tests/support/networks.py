"""Tiny networks that the tests share, and inputs for networks."""

import torch

from showface import MDRNetsConfig

SIZES = [(64, 64), (37, 50), (16, 16), (1, 1), (250, 131)]  # heights and widths

TINY = MDRNetsConfig(
    coarse_channels=8,
    coarse_blocks=1,
    channels=8,
    encoder_blocks=1,
    slots=4,
    refinement_channels=8,
    refinement_blocks=(1, 1, 1),
    image_size=32,
)


def wake(model: torch.nn.Module) -> torch.nn.Module:
    """Add noise to all weights: layers that start at zero would hide errors in the layers before them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def photo(height: int = 32, width: int = 32, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and block-shaped holes that differ between images."""
    image = torch.rand(batch, 3, height, width) * 2 - 1
    hole = torch.zeros(batch, 1, height, width)
    for index in range(batch):
        hole[index, :, height // 4 : height // 2 + 1 + index, width // 4 : width // 2 + 1] = 1
    return image, hole
