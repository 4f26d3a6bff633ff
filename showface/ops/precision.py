"""The dtype of accumulators."""

from typing import Any

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide(temperature: Tensor | None, scale: float, *tensors: Tensor) -> tuple[Any, ...]:
    """The tensors in the accumulation dtype of the first one, and the temperature as one factor."""
    dtype = accumulation_dtype(tensors[0].dtype)
    factor = scale if temperature is None else scale * temperature.to(dtype)
    return (*(x.to(dtype) for x in tensors), factor)
