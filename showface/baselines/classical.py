"""Inpainting that learns nothing: Telea's fast marching and Navier-Stokes flow, by OpenCV."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from showface.evaluation import System

CLASSICAL = ("telea", "navier-stokes")


def classical_system(name: str, radius: float = 3) -> System:
    """OpenCV's inpainting, a function of an image (H, W, 3) uint8 and a hole (H, W) bool, True = corrupted.

    Source: "telea" is Telea 2004 (pixels are filled from the hole's edge inwards by weighted means of what is known),
    "navier-stokes" is Bertalmio et al. 2001 (edges are carried on into the hole as a fluid would carry them).

    Args:
        name: one of `CLASSICAL`.
        radius: of the neighbourhood that a pixel is filled from, in pixels.

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
