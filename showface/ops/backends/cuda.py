"""The "cuda" backend: the compiled extension on CUDA tensors."""

from functools import cache

import torch
from torch import Tensor

from showface.native import allow_tf32, cuda_library
from showface.ops.dispatch import register
from showface.ops.precision import accumulation_dtype, widen

MAX_BLOCKS = 2048  # memory blocks: the sort holds a count per block and warp


def _refuses_correlation(query: Tensor, value: Tensor) -> str | None:
    """Why the kernels don't support these queries and values, or None if they do."""
    return _lacks_shared_memory(query.device, query.dtype, query.shape[-1], value.shape[-1], False, False)


def _refuses_read(latent: Tensor, memory: Tensor) -> str | None:
    """Why the kernels don't support reading with these latents from these blocks (or values), or None if they do."""
    if memory.shape[0] > MAX_BLOCKS:
        return f"its cuda kernel takes up to {MAX_BLOCKS:,} blocks, not {memory.shape[0]:,}"
    return _lacks_shared_memory(latent.device, latent.dtype, latent.shape[-1], memory.shape[-1], True, False)


def _refuses_write(latent: Tensor, memory: Tensor) -> str | None:
    """Why the kernels don't support writing these latents to these blocks, or None if they do."""
    if memory.shape[0] > MAX_BLOCKS:
        return f"its cuda kernel takes up to {MAX_BLOCKS:,} blocks, not {memory.shape[0]:,}"
    dtype = accumulation_dtype(latent.dtype)
    return _lacks_shared_memory(latent.device, dtype, latent.shape[-1], memory.shape[-1], True, True)


def _refuses_blend(memory: Tensor) -> str | None:
    """Why the kernels don't support this memory, or None if they do. They take any width."""
    return _lacks_shared_memory(memory.device, memory.dtype, 1, 1, True, False)


@cache
def _lacks_shared_memory(
    device: torch.device, dtype: torch.dtype, keys: int, values: int, memory: bool, sums: bool
) -> str | None:
    """Why this device can't run the kernels, or hold keys and values of these widths; None if it can."""
    like = torch.empty(0, dtype=dtype, device=device)
    try:
        needed, available = cuda_library(like).shared_bytes(like, keys, values, memory, sums)
    except RuntimeError as error:  # the kernels were compiled for other GPUs, or the driver is too old
        return f"its cuda kernels don't run on this device ({str(error).splitlines()[0]})"
    if needed <= available:
        return None
    return (
        f"its cuda kernel needs {needed / 1024:.0f} KB of shared memory for keys of {keys} and values of {values} "
        f"{str(dtype).removeprefix('torch.')} numbers, and this device has {available / 1024:.0f} KB"
    )


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


register("memory_read", "cuda", _memory_attend, _memory_attend_backward, refuses=_refuses_read)
register("memory_accumulate", "cuda", _memory_accumulate, refuses=_refuses_write)
register("memory_write", "cuda", _memory_write, refuses=_refuses_write)
register("memory_blend", "cuda", _memory_blend, refuses=_refuses_blend)
register("masked_correlation", "cuda", _masked_correlation, _masked_correlation_backward, refuses=_refuses_correlation)
