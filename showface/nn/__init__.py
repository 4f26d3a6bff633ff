"""Modules for any network: the two modules of the poster, and the blocks that MDRNets are built from."""

from showface.nn.blocks import GatedConv2d, GatedResidual, ModulatedResidualBlock, ResidualBlock
from showface.nn.enhancement import MaskRegionEnhancement
from showface.nn.fill import push_pull_fill
from showface.nn.memory import DisentangledMemory
from showface.nn.tokens import channels_last, hole_tokens, to_map, to_tokens

__all__ = [
    "DisentangledMemory",
    "GatedConv2d",
    "GatedResidual",
    "MaskRegionEnhancement",
    "ModulatedResidualBlock",
    "ResidualBlock",
    "channels_last",
    "hole_tokens",
    "push_pull_fill",
    "to_map",
    "to_tokens",
]
