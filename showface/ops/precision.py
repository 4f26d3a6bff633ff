"""The dtype of accumulators, and autocast's absence where it is chosen already."""

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

AUTOCAST_KEYS = DispatchKeySet(DispatchKey.AutocastCPU) | DispatchKeySet(DispatchKey.AutocastCUDA)


def full_precision(x: Tensor) -> torch.autocast:
    """Turn autocast off for tensors that are in the dtype to compute in. torch can trace it."""
    return torch.autocast(x.device.type, enabled=False)


def as_autocast(*tensors: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """The tensors in `dtype`, by default autocast's, where autocast is on for their device. float64 stays."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    wanted = dtype or torch.get_autocast_dtype(device)
    return tuple([x if x.dtype == torch.float64 else x.to(wanted) for x in tensors])


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, but quick if there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def widen(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All tensors in the accumulation dtype of the first one."""
    dtype = accumulation_dtype(first.dtype)
    return tuple([x if x.dtype == dtype else x.to(dtype) for x in (first, *others)])


def temperature_factor(temperature: Tensor | None, scale: float, like: Tensor) -> Tensor | float:
    """The temperature as one factor, in the dtype of `like`: the product of the operators' two arguments."""
    return scale if temperature is None else scale * temperature.to(like.dtype)
