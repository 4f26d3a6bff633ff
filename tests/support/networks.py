"""Tiny networks that the tests share."""

import torch

from showface import MDRNetsConfig

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
