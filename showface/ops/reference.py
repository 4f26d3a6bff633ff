"""Pieces that the written-out gradients of the reference backends share."""

from typing import Any

import torch
from torch import Tensor

from showface.ops.definitions import EPSILON


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics and sums are kept in: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide(temperature: Tensor | None, scale: float, *tensors: Tensor) -> tuple[Any, ...]:
    """Tensors in the dtype that sums are kept in, and the temperature as one factor."""
    dtype = accumulation_dtype(tensors[0].dtype)
    factor = scale if temperature is None else scale * temperature.to(dtype)
    return (*(x.to(dtype) for x in tensors), factor)


def softmax_backward(grad: Tensor, probability: Tensor) -> Tensor:
    """The gradient of the logits, from that of a softmax over the last dimension; 0 where the row is all zero."""
    weighted = grad * probability
    return weighted - probability * weighted.sum(-1, keepdim=True)


def unit_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x`, from that of `unit(x)`."""
    squared = x.square().sum(-1, keepdim=True)
    norm = squared.clamp_min(EPSILON**2).sqrt()
    direction = x / norm
    # Below epsilon the norm is a constant, so nothing is projected out.
    along = (grad * direction).sum(-1, keepdim=True) * (squared >= EPSILON**2)
    return (grad - along * direction) / norm
