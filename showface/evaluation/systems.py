"""Systems to score: saved models, and OpenCV's inpainting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from showface.baselines.classical import CLASSICAL, classical_system
from showface.evaluation.protocol import System

__all__ = ["CLASSICAL", "classical_system", "model_system"]


def model_system(folder: str | Path | None = None, device: str = "cpu") -> System:
    """A saved model of any system, by default the bundled one.

    Raises:
        FileNotFoundError, ValueError: as `showface.load_model`.
    """
    from showface.inference import inpaint
    from showface.nn import channels_last
    from showface.systems import load_model

    model = channels_last(load_model(folder).to(device))

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        return np.array(inpaint(Image.fromarray(image), hole, model=model), dtype=np.uint8)

    return run
