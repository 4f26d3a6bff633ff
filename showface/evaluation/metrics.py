"""Image quality of one result against its target, on 8-bit colour images.

Every function takes `uint8` arrays of shape `(H, W, 3)` and returns a Python float. Other shapes or dtypes
raise `ValueError`: a float image in [0, 1] scored as if it were 8-bit gives a number that looks right
and isn't.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

__all__ = [
    "PSNR_CEILING",
    "hole_gradient_percent",
    "hole_l1_percent",
    "l1_percent",
    "psnr",
    "region_l1_percent",
    "seam_l1_percent",
    "ssim",
]

PSNR_CEILING = 100.0
"""The most that `psnr` returns, in dB; identical images have it, so that a mean over images stays finite."""

_WINDOW = 11
_SIGMA = 1.5


def l1_percent(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> float:
    """Mean absolute difference over the whole image, in percent of the full range.

    Args:
        result: `(H, W, 3)` uint8.
        target: `(H, W, 3)` uint8, of the same size.

    Returns:
        A value in [0, 100]; 0 for identical images.

    Raises:
        ValueError: a shape or dtype other than the above.
    """
    _check(result, target)
    return float(np.abs(result.astype(np.int16) - target).mean() / 255 * 100)


def hole_l1_percent(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> float:
    """Mean absolute difference over the hole alone, in percent of the full range.

    Args:
        result: `(H, W, 3)` uint8.
        target: `(H, W, 3)` uint8, of the same size.
        hole: `(H, W)` bool, True = corrupted.

    Returns:
        A value in [0, 100]; 0 where the hole was filled exactly.

    Raises:
        ValueError: a shape or dtype other than the above, or a hole without a pixel.
    """
    _check(result, target)
    _check_hole(result, hole)
    if not hole.any():
        raise ValueError("hole is empty: there is nothing to score in it")
    return float(np.abs(result[hole].astype(np.int16) - target[hole]).mean() / 255 * 100)


def seam_l1_percent(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> float:
    """Mean absolute difference over the hole's pixels that touch a known one, in percent of the full range.

    The known side of the seam is exact, so this is how far the step across it is from the target's.

    Args, raises: as `hole_l1_percent`; a hole without known pixels beside it has no seam, which gives 0.
    """
    known = np.pad(~hole, 1, constant_values=False)
    touches = known[:-2, 1:-1] | known[2:, 1:-1] | known[1:-1, :-2] | known[1:-1, 2:]
    seam = hole & touches
    if hole.any() and not seam.any():
        return 0.0
    return hole_l1_percent(result, target, seam)


def hole_gradient_percent(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> float:
    """Mean absolute difference between neighbours that both lie in the hole, in percent of the full range.

    What a result has of the target's tells how sharp it is: a blurred fill has little. Noise has much, so this says
    nothing about whether the detail is right.

    Args:
        image: `(H, W, 3)` uint8.
        hole: `(H, W)` bool, True = corrupted.

    Returns:
        A value in [0, 100]; 0 for a hole without two neighbours.

    Raises:
        ValueError: a shape or dtype other than the above.
    """
    _check(image, image)
    _check_hole(image, hole)
    total, count = 0, 0
    for x, inside in ((image, hole), (image.swapaxes(0, 1), hole.T)):
        steps = np.abs(np.diff(x.astype(np.int16), axis=0))[inside[1:] & inside[:-1]]
        total, count = total + int(steps.sum()), count + steps.size
    return total / max(count, 1) / 255 * 100


def region_l1_percent(
    result: npt.NDArray[np.uint8],
    target: npt.NDArray[np.uint8],
    hole: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.integer],
) -> dict[int, tuple[float, int]]:
    """Mean absolute difference over the hole's pixels of each region, in percent, and how many pixels these are.

    Args:
        result, target, hole: as `hole_l1_percent`.
        labels: `(H, W)` region of each pixel; negative where unknown.

    Returns:
        For each region with a pixel in the hole: (percent, pixels).

    Raises:
        ValueError: a shape or dtype other than the above.
    """
    _check(result, target)
    if labels.shape != hole.shape or hole.shape != result.shape[:2]:
        raise ValueError(f"labels and hole must be of shape {result.shape[:2]}, got {labels.shape} and {hole.shape}")
    found = {}
    for region in np.unique(labels[hole]).tolist():
        if region >= 0:
            inside = hole & (labels == region)
            found[int(region)] = hole_l1_percent(result, target, inside), int(inside.sum())
    return found


def psnr(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of one image in dB, for a data range of 255.

    The squared error is averaged over all pixels and channels. Identical images, whose ratio is infinite, get
    `PSNR_CEILING`; no result gets more than that.

    Args:
        result: `(H, W, 3)` uint8.
        target: `(H, W, 3)` uint8, of the same size.

    Returns:
        A value in [0, `PSNR_CEILING`].

    Raises:
        ValueError: a shape or dtype other than the above.
    """
    _check(result, target)
    error = float(np.square(result.astype(np.float64) - target).mean())
    if error == 0:
        return PSNR_CEILING
    return min(10 * math.log10(255**2 / error), PSNR_CEILING)


def ssim(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> float:
    """Structural similarity with an 11x11 Gaussian window of sigma 1.5, for a data range of 255.

    Each colour channel is scored by itself, over the window's valid positions, and all are averaged.
    Variances are those of the population (no sample correction).

    Args:
        result: `(H, W, 3)` uint8, `H` and `W` at least 11.
        target: `(H, W, 3)` uint8, of the same size.

    Returns:
        A value in [-1, 1]; 1 for identical images.

    Raises:
        ValueError: a shape or dtype other than the above.
    """
    _check(result, target)
    if min(result.shape[:2]) < _WINDOW:
        raise ValueError(f"SSIM needs images of at least {_WINDOW}x{_WINDOW}, got {result.shape[:2]}")
    # float64, since the variances below are differences of large and nearly equal numbers.
    x = torch.from_numpy(result.astype(np.float64)).permute(2, 0, 1)
    y = torch.from_numpy(target.astype(np.float64)).permute(2, 0, 1)
    mean_x, mean_y, square_x, square_y, product = _blur(torch.stack((x, y, x * x, y * y, x * y)))
    var_x, var_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of `(A, B, H, W)` over the valid area, one axis after the other."""
    offset = torch.arange(_WINDOW, dtype=maps.dtype) - _WINDOW // 2
    kernel = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    planes = maps.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view(*maps.shape[:2], *planes.shape[-2:])


def _check(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
    for name, image in (("result", result), ("target", target)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"{name} must be uint8 of shape (H, W, 3), got {image.dtype} {image.shape}")
    if result.shape != target.shape:
        raise ValueError(f"result and target differ in size: {result.shape} and {target.shape}")


def _check_hole(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> None:
    if hole.dtype != np.bool_ or hole.shape != image.shape[:2]:
        raise ValueError(f"hole must be bool of shape {image.shape[:2]}, got {hole.dtype} {hole.shape}")
