"""The "cuda" backend: the compiled extension on CUDA tensors."""

import torch
from torch import Tensor

from showface.native import allow_tf32, cuda_library
from showface.ops.dispatch import register
from showface.ops.precision import widen

MAX_WIDTH = 512  # channels of a row
MAX_FLOAT64_WIDTH = 512  # channels of a key and its value together


def refuses(first: Tensor, last: Tensor) -> str | None:
    """Why shared memory can't hold keys as wide as `first` and values as wide as `last`, or None if it can."""
    key, value = first.shape[-1], last.shape[-1]
    if max(key, value) > MAX_WIDTH:
        return f"its cuda kernel takes vectors up to {MAX_WIDTH} wide, not {max(key, value)}"
    if first.dtype == torch.float64 and key + value > MAX_FLOAT64_WIDTH:
        return (
            f"its cuda kernel takes float64 vectors of {MAX_FLOAT64_WIDTH} numbers, key and value together, "
            f"not {key + value}"
        )
    return None


def _memory_attend(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return cuda_library(latent).memory_attend(latent, memory, value, region, temperature, scale, allow_tf32())


def _memory_attend_backward(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    value: Tensor | None,
    region: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_latent, grad_memory, grad_value, partials = cuda_library(grad).memory_attend_backward(
        grad, latent, memory, value, region, out, lse, temperature, scale, allow_tf32()
    )
    return grad_latent, grad_memory, grad_value, partials.sum() * scale


def _memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m = widen(latent, memory)  # float32 sums use float32 operands
    return cuda_library(latent).memory_accumulate(z, m, region, temperature, scale, allow_tf32())


def _memory_write(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    z, m = widen(latent, memory)
    written, rho = cuda_library(latent).memory_write(z, m, region, temperature, scale, rate, allow_tf32())
    return written.to(memory.dtype), rho


def _memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    return cuda_library(memory).memory_blend(memory, rho, total, rate)


def _masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    return cuda_library(query).masked_correlation(
        query, key, value, hole, temperature, scale, keys == "all", allow_tf32()
    )


def _masked_correlation_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
    keys: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v, partials = cuda_library(query).masked_correlation_backward(
        grad, query, key, value, hole, out, lse, temperature, scale, keys == "all", allow_tf32()
    )
    return grad_q, grad_k, grad_v, partials.sum() * scale


register("memory_read", "cuda", _memory_attend, _memory_attend_backward, refuses=refuses)
register("memory_accumulate", "cuda", _memory_accumulate, refuses=refuses)
register("memory_write", "cuda", _memory_write, refuses=refuses)
register("memory_blend", "cuda", _memory_blend)
register("masked_correlation", "cuda", _masked_correlation, _masked_correlation_backward, refuses=refuses)
