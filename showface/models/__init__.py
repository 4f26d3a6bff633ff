"""MDRNets and their configuration."""

from showface.models.config import MDRNetsConfig
from showface.models.mdrnets import MDRNets, MDRNetsOutput

__all__ = ["MDRNets", "MDRNetsConfig", "MDRNetsOutput"]
