"""The "triton" backend: the kernels of `showface.kernels`, imported at the first call."""

from functools import cache

import torch
from torch import Tensor

from showface.ops.dispatch import register

_MAX_INDEX = 2**31  # the kernels index the elements of a matrix in int32
_MAX_BLOCKS = 1024  # memory blocks: each program holds one count per block
_MAX_IMAGES = 65535  # the second dimension of a CUDA grid


def _refuses_memory(latent: Tensor, memory: Tensor) -> str | None:
    """Why the kernels don't support these latents and blocks, or None if they do."""
    width = max(latent.shape[1], memory.shape[2])
    if max(latent.shape[0], memory.shape[1]) * width >= _MAX_INDEX:
        return "its triton kernel takes latents, and blocks, of less than 2**31 numbers"
    if memory.shape[0] > _MAX_BLOCKS:
        return f"its triton kernel takes up to {_MAX_BLOCKS:,} blocks, not {memory.shape[0]}"
    return _refuses_device(latent.device)


def _refuses_correlation(query: Tensor, value: Tensor) -> str | None:
    """Why the kernels don't support these queries and values, or None if they do."""
    if query.shape[1] * max(query.shape[2], value.shape[2]) >= _MAX_INDEX:
        return "its triton kernel takes images of less than 2**31 numbers"
    if query.shape[0] > _MAX_IMAGES:
        return f"its triton kernel takes up to {_MAX_IMAGES:,} images, not {query.shape[0]}"
    return _refuses_device(query.device)


@cache
def _refuses_device(device: torch.device) -> str | None:
    """Why the kernels don't support this device, or None if they do. The interpreter takes all."""
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return "its triton kernels are for NVIDIA's GPUs"
    # Without tensor cores for these tiles, the kernels spill registers and are slower than the reference.
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 0):
        return f"its triton kernels need compute capability 8.0, and this GPU has {major}.{minor}"
    return None


def _memory_attend(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    from showface.kernels import memory as kernels

    return kernels.memory_attend(latent, memory, value, region, temperature, scale)


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
    from showface.kernels import memory as kernels

    grad_latent, grad_memory, grad_value, grad_tau = kernels.memory_attend_backward(
        grad, latent, memory, value, region, out, lse, temperature, scale
    )
    return grad_latent, grad_memory, grad_value, grad_tau * scale


def _memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    from showface.kernels import memory as kernels

    return kernels.memory_accumulate(latent, memory, region, temperature, scale)


def _memory_write(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    rho, total = _memory_accumulate(latent, memory, region, temperature, scale)
    return _memory_blend(memory, rho, total, rate), rho


def _memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    from showface.kernels import memory as kernels

    return kernels.memory_blend(memory, rho, total, rate)


def _masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    from showface.kernels import masked_correlation as kernels

    return kernels.masked_correlation(query, key, value, hole, temperature, scale, keys == "all")


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
    from showface.kernels import masked_correlation as kernels

    grad_q, grad_k, grad_v, grad_tau = kernels.masked_correlation_backward(
        grad, query, key, value, hole, out, lse, temperature, scale, keys == "all"
    )
    return grad_q, grad_k, grad_v, grad_tau * scale


register("memory_read", "triton", _memory_attend, _memory_attend_backward, refuses=_refuses_memory)
register("memory_accumulate", "triton", _memory_accumulate, refuses=_refuses_memory)
register("memory_write", "triton", _memory_write, refuses=_refuses_memory)
register("memory_blend", "triton", _memory_blend)
register(
    "masked_correlation", "triton", _masked_correlation, _masked_correlation_backward, refuses=_refuses_correlation
)
