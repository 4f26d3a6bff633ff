"""What runs `memory_read`, `memory_accumulate` and `memory_blend`: the reference, and calls of the kernels.

To read is to attend, each token to the slots of its block. Kernels that attend take an optional value (K, S, V) of the
slots instead of the slots themselves: so they give the gradients of a write too.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from showface import native
from showface.ops import backends, definitions
from showface.ops.definitions import unit
from showface.ops.reference import attend, attend_backward, wide

# The reference, region by region.


def _tokens_of_regions(region: Tensor, regions: int) -> Iterator[tuple[int, Tensor]]:
    for k in range(regions):
        yield k, (region == k).nonzero().squeeze(1)


def _attend_reference(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    value = memory if value is None else value
    z, m, v, tau = wide(temperature, scale, latent, memory, value)
    out, log_sum = z.new_zeros(len(z), v.shape[2]), z.new_zeros(len(z))
    for k, rows in _tokens_of_regions(region, len(m)):
        out[rows], log_sum[rows] = attend(z[rows], m[k], v[k], tau)
    return out.to(value.dtype), log_sum


def _attend_backward_reference(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    value: Tensor | None,
    region: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, z, m, v, o, tau = wide(temperature, scale, grad, latent, memory, memory if value is None else value, out)
    grad_z, grad_m, grad_v, grad_tau = torch.zeros_like(z), torch.zeros_like(m), torch.zeros_like(v), z.new_zeros(())
    for k, rows in _tokens_of_regions(region, len(m)):
        grad_z[rows], grad_m[k], grad_v[k], share = attend_backward(
            g[rows], z[rows], m[k], v[k], o[rows], log_sum[rows], tau
        )
        grad_tau += share
    if value is None:
        grad_m, grad_v = grad_m + grad_v, grad_v[:0]
    return grad_z.to(latent.dtype), grad_m.to(memory.dtype), grad_v.to(memory.dtype), grad_tau * scale


def _accumulate_reference(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m, tau = wide(temperature, scale, latent, memory)
    rho, total = m.new_zeros(m.shape[:2]), torch.zeros_like(m)
    for k, rows in _tokens_of_regions(region, len(m)):
        address = torch.softmax(tau * unit(z[rows]) @ unit(m[k]).T, dim=-1)
        rho[k], total[k] = address.sum(0), address.T @ z[rows]
    return rho, total


def _blend_reference(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    return definitions.memory_blend(memory.to(rho.dtype), rho, total, rate).to(memory.dtype)


def _blend_backward(
    grad: Tensor, memory: Tensor, rho: Tensor, total: Tensor, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Elementwise, in plain PyTorch for all backends: training writes to the memory without gradients."""
    written = rho[..., None] > 0
    mass = torch.where(written, rho[..., None], 1)
    exponent = torch.where(written, mass * math.log1p(-rate), 0)
    keep, share = torch.exp(exponent), -torch.expm1(exponent) / mass  # 1 - g and g / rho
    grad = grad.to(rho.dtype)
    by_gain = -math.log1p(-rate) * keep * (total / mass - memory) - share * total / mass
    grad_rho = torch.where(written, grad * by_gain, 0).sum(-1)
    return (grad * keep).to(memory.dtype), grad_rho, grad * share


def _write_reference(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    rho, total = _accumulate_reference(latent, memory, region, temperature, scale)
    return _blend_reference(memory, rho, total, rate), rho


# The compiled and Triton backends.


def _attend_cpp(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m, _ = wide(None, 1.0, latent, memory)  # it works in float32 and float64
    v = None if value is None else value.to(z.dtype)
    out, log_sum = torch.ops.showface_C.memory_attend(z, m, v, region, temperature, scale, False)
    return out.to(memory.dtype), log_sum


def _attend_backward_cpp(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    value: Tensor | None,
    region: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, z, m, o, _ = wide(None, 1.0, grad, latent, memory, out)
    v = None if value is None else value.to(z.dtype)
    backward = torch.ops.showface_C.memory_attend_backward
    *grads, shares = backward(g, z, m, v, region, o, log_sum, temperature, scale, False)
    grad_latent, grad_memory, grad_value = (x.to(latent.dtype) for x in grads)
    return grad_latent, grad_memory, grad_value, shares.sum() * scale


def _accumulate_cpp(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m, _ = wide(None, 1.0, latent, memory)
    return torch.ops.showface_C.memory_accumulate(z, m, region, temperature, scale, False)


def _write_cpp(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    z, m, _ = wide(None, 1.0, latent, memory)
    after, rho = torch.ops.showface_C.memory_write(z, m, region, temperature, scale, rate, False)
    return after.to(memory.dtype), rho


def _blend_cpp(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    return torch.ops.showface_C.memory_blend(memory.to(rho.dtype), rho, total, rate).to(memory.dtype)


def _attend_cuda(latent: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return native.cuda_library(latent).memory_attend(latent, *rest, native.allow_tf32())


def _attend_backward_cuda(grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *grads, shares = native.cuda_library(grad).memory_attend_backward(grad, *rest, native.allow_tf32())
    return *grads, shares.sum() * rest[-1]


def _accumulate_cuda(latent: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    z, m, _ = wide(None, 1.0, latent, memory)  # sums of half precision would not be worth float32
    return native.cuda_library(latent).memory_accumulate(z, m, *rest, native.allow_tf32())


def _write_cuda(latent: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    z, m, _ = wide(None, 1.0, latent, memory)
    after, rho = native.cuda_library(latent).memory_write(z, m, *rest, native.allow_tf32())
    return after.to(memory.dtype), rho


def _blend_cuda(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    return native.cuda_library(memory).memory_blend(memory, rho, total, rate)


def _attend_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from showface.kernels import memory as kernels

    return kernels.memory_attend(*args)


def _attend_backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from showface.kernels import memory as kernels

    *grads, grad_tau = kernels.memory_attend_backward(*args)
    return *grads, grad_tau * args[-1]


def _accumulate_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from showface.kernels import memory as kernels

    return kernels.memory_accumulate(*args)


def _blend_triton(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    from showface.kernels import memory as kernels

    return kernels.memory_blend(memory, rho, total, rate)


def _write_triton(*args: Any) -> tuple[Tensor, Tensor]:
    *address, rate = args
    rho, total = _accumulate_triton(*address)
    return _blend_triton(args[1], rho, total, rate), rho


def _refuses_triton(latent: Tensor, memory: Tensor) -> str | None:
    """As of masked_correlation: what its kernels can't address, and on a GPU, float64."""
    width = max(latent.shape[1], memory.shape[2])
    if max(latent.shape[0], memory.shape[1]) * width >= 2**31:
        return "its triton kernel takes latents, and blocks, of less than 2**31 numbers"
    if memory.shape[0] > 1024:  # a program holds a count for each
        return f"its triton kernel takes up to 1,024 blocks, not {memory.shape[0]}"
    if latent.is_cuda and latent.dtype == torch.float64:
        return "its triton kernel takes no float64 on a GPU"
    return None


# Gradients of writing, for all backends.


def _accumulate_backward(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """By the kernels of reading, since sum_s a[t,s] * (<z[t], grad_total[s]> + grad_rho[s]) is what a token of value
    [z[t], 1] reads of slots [grad_total[s], grad_rho[s]], and a its address."""

    def backward(
        grad_rho: Tensor,
        grad_total: Tensor,
        latent: Tensor,
        memory: Tensor,
        region: Tensor,
        temperature: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, m, _ = wide(None, 1.0, latent, memory)
        # Up to a multiple of 16: rows of other widths are slower to read on a GPU.
        fill = -(z.shape[1] + 1) % 16
        value = F.pad(torch.cat([grad_total, grad_rho[..., None]], dim=-1).to(z.dtype), (0, fill))
        # These numbers more may be too wide.
        name = "auto" if backends.refusal("memory_read", backend, z, value) else backend
        kernel = backends.kernel("memory_read", name, z, value)
        answer, log_sum = kernel.forward(z, m, value, region, temperature, scale)
        grad = F.pad(torch.cat([z, z.new_ones(len(z), 1)], dim=-1), (0, fill))
        rest = (region, answer, log_sum, temperature, scale)
        grad_latent, grad_memory, _, grad_temperature = kernel.backward(grad, z, m, value, *rest)
        return (grad_latent + answer[:, : z.shape[1]]).to(latent.dtype), grad_memory.to(memory.dtype), grad_temperature

    return backward


def _write_backward(
    accumulate: Callable[..., tuple[Tensor, Tensor]], backend: str
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Accumulates again what the forward did not keep."""
    accumulate_backward = _accumulate_backward(backend)

    def backward(
        grad: Tensor,
        grad_rho: Tensor,
        latent: Tensor,
        memory: Tensor,
        region: Tensor,
        temperature: Tensor | None,
        scale: float,
        rate: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rho, total = accumulate(latent, memory, region, temperature, scale)
        direct, by_rho, grad_total = _blend_backward(grad, memory, rho, total, rate)
        tensors = (latent, memory, region, temperature, scale)
        grad_latent, by_address, grad_temperature = accumulate_backward(by_rho + grad_rho, grad_total, *tensors)
        return grad_latent, direct + by_address, grad_temperature

    return backward


Function = Callable[..., Any]


def _register(
    backend: str,
    attend: Function,
    attend_backward: Function,
    accumulate: Function,
    write: Function,
    blend: Function,
    refuses: Function = backends.refuses_nothing,
) -> None:
    backends.register("memory_read", backend, attend, attend_backward, refuses=refuses)
    backends.register("memory_accumulate", backend, accumulate, _accumulate_backward(backend), refuses=refuses)
    backends.register("memory_write", backend, write, _write_backward(accumulate, backend), refuses=refuses)
    backends.register("memory_blend", backend, blend, _blend_backward)


_register(
    "reference",
    _attend_reference,
    _attend_backward_reference,
    _accumulate_reference,
    _write_reference,
    _blend_reference,
)
_register("cpp", _attend_cpp, _attend_backward_cpp, _accumulate_cpp, _write_cpp, _blend_cpp)
_register(
    "cuda",
    _attend_cuda,
    _attend_backward_cuda,
    _accumulate_cuda,
    _write_cuda,
    _blend_cuda,
    refuses=backends.refuses_cuda,
)
_register(
    "triton",
    _attend_triton,
    _attend_backward_triton,
    _accumulate_triton,
    _write_triton,
    _blend_triton,
    refuses=_refuses_triton,
)
