"""MDRNets, their configuration, and what every system that fills holes shares with them."""

from showface.models.config import MDRNetsConfig
from showface.models.mdrnets import MDRNets, MDRNetsOutput
from showface.models.network import BUNDLED, InpaintingNetwork, InpaintingOutput

__all__ = ["BUNDLED", "InpaintingNetwork", "InpaintingOutput", "MDRNets", "MDRNetsConfig", "MDRNetsOutput"]
