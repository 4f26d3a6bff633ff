"""The networks that MDRNets are compared with, trained by the same trainer on the same images and holes.

`BASELINES` maps names to classes. Each network has its own file, written from the description in its paper.
"""

from showface.baselines.base import Baseline, BaselineConfig
from showface.baselines.ctsdg import CTSDG
from showface.baselines.deepfillv2 import DeepFillv2
from showface.baselines.dsi import DSI
from showface.baselines.ict import ICT
from showface.baselines.pconv import PConvUNet
from showface.baselines.pic import PIC
from showface.baselines.pluralistic import PluralisticBaseline
from showface.baselines.unet import UNet

BASELINES: dict[str, type[Baseline]] = {
    network.system: network for network in (PConvUNet, DeepFillv2, CTSDG, PIC, DSI, ICT, UNet)
}

__all__ = [
    "BASELINES",
    "CTSDG",
    "DSI",
    "ICT",
    "PIC",
    "Baseline",
    "BaselineConfig",
    "DeepFillv2",
    "PConvUNet",
    "PluralisticBaseline",
    "UNet",
]
