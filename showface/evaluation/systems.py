"""Systems to score: saved models, and OpenCV's inpainting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from showface.evaluation.protocol import System

__all__ = ["CLASSICAL", "classical_system", "model_system"]

CLASSICAL = ("telea", "navier-stokes")


def classical_system(name: str, radius: float = 3) -> System:
    """OpenCV's inpainting; `name` is one of `CLASSICAL`, `radius` in pixels.

    Raises:
        ValueError: another name.
        ModuleNotFoundError: OpenCV is not installed.
    """
    if name not in CLASSICAL:
        raise ValueError(f"baseline must be one of {', '.join(CLASSICAL)}, got {name!r}")
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the baseline {name} needs OpenCV: install 'showface[evaluate]'") from error
    method = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}[name]

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        return np.asarray(cv2.inpaint(image, hole.astype(np.uint8) * 255, radius, method), dtype=np.uint8)

    return run


def model_system(folder: str | Path | None = None, device: str = "cpu") -> System:
    """A saved model, by default the bundled one.

    Raises:
        FileNotFoundError, ValueError: as `MDRNets.from_pretrained`.
    """
    from showface.inference import inpaint
    from showface.models import MDRNets
    from showface.nn import channels_last

    model = channels_last(MDRNets.from_pretrained(folder).to(device).eval())

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        return np.array(inpaint(Image.fromarray(image), hole, model=model), dtype=np.uint8)

    return run
