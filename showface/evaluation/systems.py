"""Ready-made systems to evaluate: saved models, and OpenCV's classical methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from showface.evaluation.protocol import FillHole
from showface.inference import Inpainter
from showface.models import InpaintingNetwork
from showface.registry import load_model

CLASSICAL = ("telea", "navier-stokes")
_RADIUS = 3  # pixels of the neighbourhood from which OpenCV fills a pixel


def model_system(model: InpaintingNetwork | str | Path = "default") -> FillHole:
    """The system of a network, or of a saved model given by its folder or bundled name.

    Raises:
        FileNotFoundError, ValueError: as `showface.load_model`.
    """
    network = model if isinstance(model, InpaintingNetwork) else load_model(model)

    def run(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        # Images of the protocol are aligned faces, so no face is looked for.
        size = min(network.config.image_size, *hole.shape)
        return np.asarray(Inpainter(network, faces=False, size=size)(Image.fromarray(image), hole), dtype=np.uint8)

    return run


def classical_system(name: str) -> FillHole:
    """The system of a classical method in OpenCV, which needs no training.

    Source: "telea" is Telea 2004: it fills from the hole's edge inwards; each pixel gets a weighted mean of known
    pixels. "navier-stokes" is Bertalmio et al. 2001: it continues edges into the hole as fluid dynamics would.

    Args:
        name: one of `CLASSICAL`.

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
        return np.asarray(cv2.inpaint(image, hole.astype(np.uint8) * 255, _RADIUS, method), dtype=np.uint8)

    return run
