"""Argument checks shared by the operators. Each error names the argument, the expected value and the actual value."""

import math

import torch
from torch import Tensor
from torch._C import _functorch

from showface.ops.dispatch import BACKENDS, FLOATS


def describe(x: object) -> str:
    return f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else f"{type(x).__name__} {x!r}"


def check_tensor(
    name: str, x: Tensor, shape: str, *, dtype: torch.dtype | None = None, like: Tensor | None = None
) -> None:
    """Check that `x` is a tensor with the dimensions that `shape` names, such as "(T, C)".

    `dtype` None means floating point. With `like`, `x` must be on that tensor's device. If `dtype` is also None, both
    must have the same dtype, unless autocast converts them to one.
    """
    if not isinstance(x, Tensor) or ((x.dtype != dtype) if dtype else (x.dtype not in FLOATS)):
        wanted = str(dtype) if dtype else "a floating-point tensor"
        raise TypeError(f"{name} must be {wanted} of shape {shape}, got {describe(x)}")
    if x.dim() != shape.count(",") + (not shape.endswith(",)")):
        raise ValueError(f"{name} must have shape {shape}, got {describe(x)}")
    if like is not None:
        if x.device != like.device:
            raise ValueError(f"{name} must be on {like.device} like the first argument, got {describe(x)}")
        if dtype is None and x.dtype != like.dtype and not _autocast_joins(x, like):
            raise TypeError(f"{name} must be {like.dtype} like the first argument, got {describe(x)}")


def _autocast_joins(x: Tensor, other: Tensor) -> bool:
    """Whether autocast converts both tensors to the same dtype. It does not convert float64."""
    device = x.device.type
    return (
        device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, other.dtype)
    )


def check_size(name: str, x: Tensor, dim: int, size: int, meaning: str) -> None:
    """Check one dimension against the size that another argument gave it."""
    if x.shape[dim] != size:
        raise ValueError(f"{name} must have {meaning} = {size} in dimension {dim}, got shape {tuple(x.shape)}")


def check_temperature(temperature: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    """Split a temperature into the two arguments of the operators: a 0-d tensor or None, and a float factor.

    A float stays a float: converting it to a tensor would cost a kernel launch. The value of a tensor is not read
    here, because that would wait for the GPU; `check_temperature_value` checks it when the operator runs.
    """
    if isinstance(temperature, Tensor):
        if temperature.dtype not in FLOATS:
            raise TypeError(f"temperature must be a float or a floating-point tensor, got {describe(temperature)}")
        if temperature.dim():
            raise ValueError(f"temperature must be a float or a tensor of shape (), got {describe(temperature)}")
        if temperature.device != like.device:
            raise ValueError(f"temperature must be on {like.device}, got {describe(temperature)}")
        return temperature, 1.0
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature must be a float or a tensor of shape (), got {describe(temperature)}")
    _check_range(temperature, like)
    return None, float(temperature)


def max_temperature(dtype: torch.dtype) -> float:
    """The highest temperature for tensors of this dtype. *Ours*.

    There, the rounding error of a cosine changes a weight by about 1%. At higher temperatures, weights that a kernel
    computes twice (for a write, or in the backward) differ more and more, and the results become noise.
    """
    return 1e13 if dtype == torch.float64 else 1e5


def _check_range(temperature: float, like: Tensor) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    highest = max_temperature(like.dtype)
    if temperature > highest:
        name = str(like.dtype).removeprefix("torch.")
        raise ValueError(f"temperature must be at most {highest:g} for {name}, got {temperature:g}")


def check_backend(backend: str) -> None:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")


# Values inside tensors are checked on the CPU only. On a GPU, reading them on the host would wait for the device, and
# checking them on the device would cost extra kernel launches. The kernels access no invalid memory for any values.


def check_regions(region: Tensor, regions: int) -> None:
    """Check that `region`, on a CPU, holds -1 or 0 to K-1."""
    if region.is_cpu and region.numel() and not _hides_values():
        low, high = region.aminmax()
        if low.item() < -1 or high.item() >= regions:
            raise ValueError(f"region must hold -1 or 0 to {regions - 1}, got values from {low} to {high}")


def check_temperature_value(temperature: Tensor | None, like: Tensor) -> None:
    """Check that a tensor temperature, on a CPU, is in the range for tensors like `like`."""
    if temperature is not None and temperature.is_cpu and not _hides_values():
        _check_range(temperature.item(), like)


def _hides_values() -> bool:
    """Whether a transform of `torch.func` is at work. Under `vmap`, values can't be read."""
    return _functorch.maybe_current_level() is not None
