"""Gradients of writing to the memory, shared by all backends: they call the backend's read kernels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from showface.ops import dispatch
from showface.ops.precision import widen


def accumulate_backward(
    grad_rho: Tensor,  # (K, S)
    grad_total: Tensor,  # (K, S, C)
    latent: Tensor,  # (T, C)
    memory: Tensor,  # (K, S, C)
    region: Tensor,  # (T,)
    temperature: Tensor | None,
    scale: float,
    backend: str = "auto",
    *,
    op: str = "memory_accumulate",
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of latent, memory and temperature.

    They need sum_s a[t,s] * (<z[t], grad_total[s]> + grad_rho[s]) for each token t, where a is its address. This is
    the dot product of [z[t], 1] with the result of a read whose values are [grad_total[s], grad_rho[s]].

    Raises:
        RuntimeError: the backend was named and can't read values this wide; the message names `op`.
    """
    z, m = widen(latent, memory)
    # Pad the width to a multiple of 16: a GPU reads rows of other widths more slowly.
    padding = -(z.shape[1] + 1) % 16
    value = F.pad(torch.cat([grad_total, grad_rho[..., None]], dim=-1).to(z.dtype), (0, padding))
    # The extra mass column may exceed the width limit of a backend that could write.
    kernel = dispatch.kernel("memory_read", backend, z, value, called=f"the gradient of showface.ops.{op}")
    out, lse = kernel.forward(z, m, value, region, temperature, scale)
    grad = F.pad(torch.cat([z, z.new_ones(len(z), 1)], dim=-1), (0, padding))
    grad_latent, grad_memory, _, grad_temperature = kernel.backward(
        grad, z, m, value, region, out, lse, temperature, scale
    )
    return (grad_latent + out[:, : z.shape[1]]).to(latent.dtype), grad_memory.to(memory.dtype), grad_temperature


def blend_backward(
    grad: Tensor,  # (K, S, C)
    memory: Tensor,  # (K, S, C)
    rho: Tensor,  # (K, S)
    total: Tensor,  # (K, S, C)
    rate: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of memory, rho and total. Elementwise, in plain PyTorch: training does not differentiate writes."""
    written = rho[..., None] > 0
    mass = torch.where(written, rho[..., None], 1)
    exponent = torch.where(written, mass * math.log1p(-rate), 0)
    keep, gain_per_mass = torch.exp(exponent), -torch.expm1(exponent) / mass  # 1 - g and g / rho
    grad = grad.to(rho.dtype)
    by_gain = -math.log1p(-rate) * keep * (total / mass - memory) - gain_per_mass * total / mass
    grad_rho = torch.where(written, grad * by_gain, 0).sum(-1)
    return (grad * keep).to(memory.dtype), grad_rho, grad * gain_per_mass


def write_backward(
    grad: Tensor,  # (K, S, C)
    grad_rho: Tensor,  # (K, S)
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | None,
    scale: float,
    rate: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of latent, memory and temperature. It recomputes rho and total, which the forward does not save."""
    accumulate = dispatch.kernel("memory_accumulate", backend, latent, memory)
    rho, total = accumulate.forward(latent, memory, region, temperature, scale)
    grad_memory, grad_rho_by_blend, grad_total = blend_backward(grad, memory, rho, total, rate)
    grad_latent, grad_memory_by_address, grad_temperature = accumulate_backward(
        grad_rho + grad_rho_by_blend, grad_total, latent, memory, region, temperature, scale, backend, op="memory_write"
    )
    return grad_latent, grad_memory + grad_memory_by_address, grad_temperature
