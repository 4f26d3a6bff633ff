"""Memory addressing, the operator of the Disentangled Memory Module: read and write blocks of slots by cosine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from showface import native
from showface.ops import backends, checks, definitions
from showface.ops.definitions import unit
from showface.ops.library import LIBRARY, autocast, declare, differentiate
from showface.ops.reference import accumulation_dtype, softmax_backward, unit_backward, wide


def memory_read(
    latent: Tensor, memory: Tensor, region: Tensor, *, temperature: float | Tensor, backend: str = "auto"
) -> Tensor:
    """Look each latent up in the memory block of its region.

    `out[t] = sum_s a[t,s] * memory[region[t], s]` with
    `a[t,s] = softmax over s of temperature * <unit(latent[t]), unit(memory[region[t], s])>`.
    A token of region -1 reads zeros. Source: the scheme is *ours*, the block per semantic part is *stated*.

    Args:
        latent: (T, C) floating point. Differentiable.
        memory: (K, S, C), K blocks of S slots, dtype of `latent`. Differentiable.
        region: (T,) int64, 0 to K-1, or -1 for no region.
        temperature: positive, multiplies the cosine; a float, or a 0-d tensor, which is differentiable.
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        (T, C), dtype of `latent`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value. On a GPU, values inside tensors are checked
            by an asynchronous assert.
        RuntimeError: the backend was named and can't run; the message says why.
    """
    _check(latent, memory, region, backend)
    tensor, scale = checks.check_temperature(temperature, latent)
    return torch.ops.showface.memory_read(latent, memory, region, tensor, scale, backend)


def memory_write(
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    *,
    temperature: float | Tensor,
    rate: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Move the slots that the latents address towards the latents.

    `rho[k,s]` sums the address `a[t,s]` over the tokens of region k, `mean[k,s]` is the latents' mean by that
    weight, and `memory' = memory + g * (mean - memory)` with `g = 1 - (1 - rate) ** rho`. A slot without mass
    keeps its exact bits. The same as `memory_accumulate` followed by `memory_blend`. Source: *ours*.

    Args:
        latent: (T, C) floating point. Differentiable.
        memory: (K, S, C), dtype of `latent`. Differentiable. It is not changed in place.
        region: (T,) int64, 0 to K-1, or -1 for a token that writes nothing.
        temperature: positive; a float, or a 0-d tensor, which is differentiable.
        rate: the share by which one unit of mass moves a slot, in (0, 1).
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        The new memory (K, S, C) in the dtype of `memory`, and rho (K, S), in float32 for half-precision input.

    Raises:
        TypeError, ValueError, RuntimeError: as `memory_read`; ValueError too for a rate outside (0, 1).
    """
    _check(latent, memory, region, backend)
    _check_rate(rate)
    tensor, scale = checks.check_temperature(temperature, latent)
    return torch.ops.showface.memory_write(latent, memory, region, tensor, scale, float(rate), backend)


def memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, *, temperature: float | Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The first half of `memory_write`: the mass and the weighted sum that each slot receives.

    Both are sums over tokens, so workers that hold a part of a batch each add theirs (all-reduce) before
    `memory_blend`, and all get the memory that one worker with the whole batch would get. Source: *ours*.

    Args and errors as `memory_read`.

    Returns:
        rho (K, S) and total (K, S, C), in float32 for half-precision input, else in the dtype of `latent`.
    """
    _check(latent, memory, region, backend)
    tensor, scale = checks.check_temperature(temperature, latent)
    return torch.ops.showface.memory_accumulate(latent, memory, region, tensor, scale, backend)


def memory_blend(memory: Tensor, rho: Tensor, total: Tensor, *, rate: float) -> Tensor:
    """The second half of `memory_write`: blend accumulated sums into the memory.

    Args:
        memory: (K, S, C) floating point.
        rho, total: (K, S) and (K, S, C), of `memory_accumulate`.
        rate: in (0, 1).

    Returns:
        The new memory (K, S, C), dtype of `memory`; slots with `rho = 0` keep their exact bits.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, or a rate outside (0, 1).
    """
    checks.check_tensor("memory", memory, "(K, S, C)")
    checks.check_tensor("rho", rho, "(K, S)")
    checks.check_tensor("total", total, "(K, S, C)")
    _check_rate(rate)
    if total.shape != memory.shape or rho.shape != memory.shape[:2]:
        raise ValueError(
            f"rho and total must have shapes (K, S) and (K, S, C) like memory {tuple(memory.shape)}, "
            f"got {tuple(rho.shape)} and {tuple(total.shape)}"
        )
    return definitions.memory_blend(memory, rho, total, rate).to(memory.dtype)


def _check(latent: Tensor, memory: Tensor, region: Tensor, backend: str) -> None:
    checks.check_tensor("latent", latent, "(T, C)")
    checks.check_tensor("memory", memory, "(K, S, C)", like=latent)
    checks.check_tensor("region", region, "(T,)", dtype=torch.int64, like=latent)
    checks.check_size("memory", memory, 2, latent.shape[1], "the channels of latent")
    checks.check_size("region", region, 0, latent.shape[0], "the tokens of latent")
    if 0 in memory.shape[:2]:
        raise ValueError(f"memory must have at least one block and one slot, got shape {tuple(memory.shape)}")
    checks.check_backend(backend)


def _check_rate(rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(f"rate must be a float in (0, 1), got {checks.describe(rate)}")
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")


# The reference backend: the definition forward, its gradient written out backward.


def _address(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What both gradients start from: unit latents, unit blocks, cosines and the address."""
    latent_unit = unit(latent)
    block_unit = unit(memory)[region.clamp_min(0)]  # (T, S, C)
    cosine = torch.einsum("tc,tsc->ts", latent_unit, block_unit)
    address = torch.softmax(temperature * cosine, dim=-1).masked_fill((region < 0)[:, None], 0)
    return latent_unit, block_unit, cosine, address


def _address_backward(
    grad_address: Tensor,  # (T, S)
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the address to those of latent, memory and temperature."""
    latent_unit, block_unit, cosine, address = _address(latent, memory, region, temperature)
    grad_logit = softmax_backward(grad_address, address)
    grad_cosine = grad_logit * temperature
    grad_latent = unit_backward(torch.einsum("ts,tsc->tc", grad_cosine, block_unit), latent)
    grad_block = grad_cosine[:, :, None] * latent_unit[:, None, :]
    grad_memory = unit_backward(_sum_by_region(grad_block, region, memory), memory)
    return grad_latent, grad_memory, (grad_logit * cosine).sum()


def _sum_by_region(x: Tensor, region: Tensor, memory: Tensor) -> Tensor:
    """Sum (T, S, C) over the tokens of each region: (K, S, C). Region -1 has weight 0 in `x` already."""
    member = (region[:, None] == torch.arange(memory.shape[0], device=region.device)).to(x.dtype)
    return torch.einsum("tk,tsc->ksc", member, x)


def _read_reference(latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float) -> Tensor:
    z, m, tau = wide(temperature, scale, latent, memory)
    return definitions.memory_read(z, m, region, tau).to(latent.dtype)


def _read_backward_reference(
    grad: Tensor, latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    g, z, m, tau = wide(temperature, scale, grad, latent, memory)
    address = definitions.memory_address(z, m, region, tau)
    grad_address = torch.einsum("tc,tsc->ts", g, m[region.clamp_min(0)])
    grad_latent, grad_memory, grad_tau = _address_backward(grad_address, z, m, region, tau)
    grad_memory = grad_memory + _sum_by_region(address[:, :, None] * g[:, None, :], region, m)
    return grad_latent.to(latent.dtype), grad_memory.to(memory.dtype), grad_tau * scale


def _accumulate_reference(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m, tau = wide(temperature, scale, latent, memory)
    return definitions.memory_accumulate(z, m, region, tau)


def _accumulate_backward_reference(
    grad_rho: Tensor,
    grad_total: Tensor,
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    z, m, tau = wide(temperature, scale, latent, memory)
    grad_rho, grad_total = grad_rho.to(z.dtype), grad_total.to(z.dtype)
    row = region.clamp_min(0)
    address = definitions.memory_address(z, m, region, tau)
    grad_block = grad_total[row]  # (T, S, C)
    grad_address = grad_rho[row] + torch.einsum("tc,tsc->ts", z, grad_block)
    grad_latent, grad_memory, grad_tau = _address_backward(grad_address, z, m, region, tau)
    grad_latent = grad_latent + torch.einsum("ts,tsc->tc", address, grad_block)
    return grad_latent.to(latent.dtype), grad_memory.to(memory.dtype), grad_tau * scale


# The compiled and Triton backends. Kernels without a backward of their own take the reference's.


def _read_cpp(latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float) -> Tensor:
    return torch.ops.showface_C.memory_read(latent, memory, region, temperature, scale)


def _read_cuda(latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float) -> Tensor:
    return native.cuda_library(latent).memory_read(latent, memory, region, temperature, scale)


def _read_triton(latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float) -> Tensor:
    from showface.kernels import memory as kernels

    return kernels.memory_read(latent, memory, region, temperature, scale)


_SINGLE_AND_DOUBLE = frozenset({torch.float32, torch.float64})

backends.register("memory_read", "reference", _read_reference, _read_backward_reference)
backends.register("memory_read", "cpp", _read_cpp, _read_backward_reference, _SINGLE_AND_DOUBLE)
backends.register("memory_read", "cuda", _read_cuda, _read_backward_reference)
backends.register("memory_read", "triton", _read_triton, _read_backward_reference)
backends.register("memory_write", "reference", _accumulate_reference, _accumulate_backward_reference)


# The torch operators.

_ARGS = "Tensor latent, Tensor memory, Tensor region, Tensor? temperature, float scale"


def _forward(op: str) -> Callable[..., Any]:
    def forward(
        latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, backend: str = "auto"
    ) -> Any:
        kernel = backends.kernel(op, backend, latent)
        checks.check_regions(region, memory.shape[0])
        checks.check_positive(temperature)
        return kernel.forward(latent, memory, region, temperature, scale)

    return forward


def _read_backward(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | None,
    scale: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = backends.kernel("memory_read", backend, latent)
    return kernel.backward(grad, latent, memory, region, temperature, scale)


def _accumulate_backward(
    grad_rho: Tensor,
    grad_total: Tensor,
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | None,
    scale: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = backends.kernel("memory_write", backend, latent)
    return kernel.backward(grad_rho, grad_total, latent, memory, region, temperature, scale)


def _write(
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | None,
    scale: float,
    rate: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    rho, total = torch.ops.showface.memory_accumulate(latent, memory, region, temperature, scale, backend)
    return definitions.memory_blend(memory, rho, total, rate).to(memory.dtype), rho


def _fake_gradients(latent: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_temperature = latent.new_empty((), dtype=accumulation_dtype(latent.dtype))
    return latent.new_empty(latent.shape), memory.new_empty(memory.shape), grad_temperature


def _fake_sums(latent: Tensor, memory: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(latent.dtype)
    return memory.new_empty(memory.shape[:2], dtype=dtype), memory.new_empty(memory.shape, dtype=dtype)


declare(
    f"memory_read({_ARGS}, str backend='auto') -> Tensor",
    _forward("memory_read"),
    lambda latent, *_: latent.new_empty(latent.shape),
)
declare(
    f"memory_read_backward(Tensor grad, {_ARGS}, str backend='auto') -> (Tensor, Tensor, Tensor)",
    _read_backward,
    lambda grad, latent, memory, *_: _fake_gradients(latent, memory),
)
declare(
    f"memory_accumulate({_ARGS}, str backend='auto') -> (Tensor, Tensor)",
    _forward("memory_write"),
    _fake_sums,
)
declare(
    f"memory_accumulate_backward(Tensor grad_rho, Tensor grad_total, {_ARGS}, str backend='auto')"
    " -> (Tensor, Tensor, Tensor)",
    _accumulate_backward,
    lambda grad_rho, grad_total, latent, memory, *_: _fake_gradients(latent, memory),
)
LIBRARY.define(f"memory_write({_ARGS}, float rate, str backend='auto') -> (Tensor, Tensor)")
# Made of the two halves, so that it needs neither a gradient nor a fake of its own.
LIBRARY.impl("memory_write", _write, "CompositeImplicitAutograd")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    latent, memory, region, temperature, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(latent, memory, region, temperature)


def _finish(ctx: Any, grads: tuple[Tensor, Tensor, Tensor]) -> tuple[Any, ...]:
    grad_latent, grad_memory, grad_temperature = grads
    temperature = ctx.saved_tensors[3]
    if temperature is not None:
        grad_temperature = grad_temperature.to(temperature.dtype)
    return grad_latent, grad_memory, None, None if temperature is None else grad_temperature, None, None


def _read_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _finish(ctx, torch.ops.showface.memory_read_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.backend))


def _accumulate_gradient(ctx: Any, grad_rho: Tensor, grad_total: Tensor) -> tuple[Any, ...]:
    backward = torch.ops.showface.memory_accumulate_backward
    return _finish(ctx, backward(grad_rho, grad_total, *ctx.saved_tensors, ctx.scale, ctx.backend))


differentiate("memory_read", _read_gradient, _setup)
differentiate("memory_accumulate", _accumulate_gradient, _setup)
autocast("memory_read", cast=(0, 1))
# The memory is a state that many small steps add up in, so writing to it stays in float32.
autocast("memory_accumulate", cast=(0, 1), dtype=torch.float32)
