"""What the reference backends share: the definitions' arithmetic, with gradients written out."""

import math
from typing import Any

import torch
from torch import Tensor

from showface.ops.definitions import EPSILON, unit


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics and sums are kept in: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide(temperature: Tensor | None, scale: float, *tensors: Tensor) -> tuple[Any, ...]:
    """Tensors in the dtype that sums are kept in, and the temperature as one factor."""
    dtype = accumulation_dtype(tensors[0].dtype)
    factor = scale if temperature is None else scale * temperature.to(dtype)
    return (*(x.to(dtype) for x in tensors), factor)


def unit_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x`, from that of `unit(x)`."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    norm = length.clamp_min(EPSILON)
    # Below epsilon the norm is a constant, so nothing is projected out.
    along = (grad * x).sum(-1, keepdim=True) / norm.square() * (length >= EPSILON)
    return (grad - along * x) / norm


# Attention by cosine of one group of queries to one group of keys: an image's corrupted and known tokens, or a region's
# tokens and its block of memory. A few rows of weights at a time: so memory stays linear, and they stay in the cache.

_CHUNK = 2**19  # weights, of 4 or 8 bytes each


def _rows(queries: int, keys: int) -> list[slice]:
    step = max(_CHUNK // max(keys, 1), 1)
    return [slice(first, first + step) for first in range(0, queries, step)]


def attend(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean values by weight `softmax(temperature * <unit(query), unit(key)>)`; zeros where there is no key.

    Args:
        query: (R, C).
        key, value: (J, C) and (J, V).

    Returns:
        (R, V), and for the backward (R,): the logarithm to base 2 of the sum under each softmax.
    """
    out, log_sum = value.new_zeros(len(query), value.shape[1]), value.new_zeros(len(query))
    if len(key):
        q, k = temperature * unit(query), unit(key).T
        for rows in _rows(len(query), len(key)):
            logits = q[rows] @ k
            total = logits.logsumexp(-1, keepdim=True)
            out[rows] = (logits - total).exp() @ value
            log_sum[rows] = total.squeeze(-1) / math.log(2)
    return out, log_sum


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `attend` in query, key, value and temperature, from that of its answers and its results."""
    q, k = unit(query), unit(key)
    grad_q, grad_k, grad_v = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    grad_temperature = query.new_zeros(())
    for rows in _rows(len(query), len(key)) if len(key) else ():
        weight = ((temperature * q[rows]) @ k.T - log_sum[rows, None] * math.log(2)).exp()
        along = (grad[rows] * out[rows]).sum(-1, keepdim=True)
        grad_logit = weight * (grad[rows] @ value.T - along)
        grad_row = grad_logit @ k
        grad_temperature += (grad_row * q[rows]).sum()
        grad_q[rows] = grad_row * temperature
        grad_k.addmm_(grad_logit.T, temperature * q[rows])
        grad_v.addmm_(weight.T, grad[rows])
    return unit_backward(grad_q, query), unit_backward(grad_k, key), grad_v, grad_temperature
