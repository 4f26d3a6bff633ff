"""Systems to score: saved models, and OpenCV's inpainting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from showface.baselines.classical import CLASSICAL, classical_system
from showface.evaluation.protocol import System

if TYPE_CHECKING:
    from showface.models import InpaintingNetwork

__all__ = ["CLASSICAL", "classical_system", "model_system"]


def model_system(model: InpaintingNetwork | str | Path = "default") -> System:
    """A network, or the saved model of any system, by its folder or a bundled one's name.

    Raises:
        FileNotFoundError, ValueError: as `showface.load_model`.
    """
    from showface.inference import inpaint
    from showface.models import InpaintingNetwork
    from showface.nn import channels_last
    from showface.systems import load_model

    network = model if isinstance(model, InpaintingNetwork) else channels_last(load_model(model))

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        return np.array(inpaint(Image.fromarray(image), hole, model=network), dtype=np.uint8)

    return run
