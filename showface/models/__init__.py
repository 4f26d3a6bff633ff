"""MDRNets, their configuration, and the base class of every network that fills holes."""

from showface.models.config import MDRNetsConfig
from showface.models.find import BUNDLED
from showface.models.mdrnets import MDRNets
from showface.models.network import InpaintingNetwork
from showface.models.output import InpaintingOutput, MDRNetsOutput

__all__ = ["BUNDLED", "InpaintingNetwork", "InpaintingOutput", "MDRNets", "MDRNetsConfig", "MDRNetsOutput"]
