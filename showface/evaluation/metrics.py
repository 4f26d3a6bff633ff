"""Image metrics of a result against its target, for 8-bit colour images.

All images are `uint8` arrays of shape `(H, W, 3)`. Other shapes or dtypes raise `ValueError`: a float image in [0, 1],
scored as 8 bits, would give a plausible but wrong number.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

PSNR_CEILING = 100.0
"""The largest value of `psnr`, in dB. Identical images get this value, so that means over images stay finite."""

_WINDOW = 11
_SIGMA = 1.5


def l1_percent(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> float:
    """Mean absolute difference over the whole image, as a percentage of the full range.

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
    """Mean absolute difference over the hole only, as a percentage of the full range.

    Args:
        result: `(H, W, 3)` uint8.
        target: `(H, W, 3)` uint8, of the same size.
        hole: `(H, W)` bool, True = corrupted.

    Returns:
        A value in [0, 100]; 0 if the hole was filled exactly.

    Raises:
        ValueError: a shape or dtype other than the above, or an empty hole.
    """
    _check(result, target)
    _check_hole(result, hole)
    if not hole.any():
        raise ValueError("hole is empty: there is nothing to score in it")
    return float(np.abs(result[hole].astype(np.int16) - target[hole]).mean() / 255 * 100)


def seam_l1_percent(result: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> float:
    """Mean absolute difference over those pixels of the hole that touch a known pixel, as a percentage of full range.

    Known pixels are exact, so this measures how visible the edge of the hole is.

    Args and errors: as `hole_l1_percent`. A hole without known pixels beside it has no seam and gives 0.
    """
    known = np.pad(~hole, 1, constant_values=False)
    touches = known[:-2, 1:-1] | known[2:, 1:-1] | known[1:-1, :-2] | known[1:-1, 2:]
    seam = hole & touches
    if hole.any() and not seam.any():
        return 0.0
    return hole_l1_percent(result, target, seam)


def hole_gradient_percent(image: npt.NDArray[np.uint8], hole: npt.NDArray[np.bool_]) -> float:
    """Mean absolute difference between neighbouring pixels in the hole, as a percentage of the full range.

    The result's value divided by the target's measures sharpness: a blurred fill has a small gradient. It does not say
    whether the detail is right, since noise has a large gradient.

    Args:
        image: `(H, W, 3)` uint8.
        hole: `(H, W)` bool, True = corrupted.

    Returns:
        A value in [0, 100]; 0 for a hole without neighbouring pixels.

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
    """Mean absolute difference over the hole's pixels in each region, as a percentage of the full range.

    Args:
        result, target, hole: as `hole_l1_percent`.
        labels: `(H, W)`, the region of each pixel; negative where unknown.

    Returns:
        A pair for each region with pixels in the hole: the percentage, and the number of these pixels.

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

    The squared error is averaged over all pixels and channels. The result is at most `PSNR_CEILING`, which identical
    images get.

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

    Each colour channel is scored separately, over the valid positions of the window, and the scores are averaged.
    Variances are population variances (without sample correction).

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
    # float64, because the variances below are differences of large, nearly equal numbers.
    x = torch.from_numpy(result.astype(np.float64)).permute(2, 0, 1)
    y = torch.from_numpy(target.astype(np.float64)).permute(2, 0, 1)
    mean_x, mean_y, square_x, square_y, product = _blur(torch.stack((x, y, x * x, y * y, x * y)))
    var_x, var_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Separable Gaussian blur of `(A, B, H, W)`, over the valid area."""
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
