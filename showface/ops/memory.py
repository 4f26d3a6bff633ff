"""The memory operators of the Disentangled Memory Module: their API, schemas and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from showface.ops import checks, definitions, dispatch, memory_gradients, transforms
from showface.ops.library import autocast, declare, declare_first, differentiate
from showface.ops.precision import accumulation_dtype, full_precision, temperature_factor, widen


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
        temperature: multiplies the cosine; a float, or a 0-d tensor, which is differentiable. Positive and at most
            1e5 (1e13 for float64), above which rounding errors decide the weights. Under torch.compile pass a 0-d
            tensor if it changes: a float is compiled in.
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        (T, C), dtype of `latent`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value. On a GPU, values inside tensors are not
            checked, since the host would have to wait for them: there a region outside 0..K-1 counts as -1.
        RuntimeError: the backend was named and can't run; the message says why.
    """
    _check(latent, memory, region, backend)
    tensor, scale = checks.check_temperature(temperature, latent)
    if transforms.is_needed("memory_read", backend, latent, memory, tensor):
        return transforms.memory_read(latent, memory, region, tensor, scale)
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

    `rho[k,s]` sums the address `a[t,s]` over the tokens of region k, `mean[k,s]` is the mean of the latents with
    these weights, and `memory' = memory + g * (mean - memory)` with `g = 1 - (1 - rate) ** rho`. A slot without mass
    keeps its exact bits. The same as `memory_accumulate` followed by `memory_blend`. Source: *ours*.

    Args:
        latent: (T, C) floating point. Differentiable.
        memory: (K, S, C), dtype of `latent`. Differentiable. It is not changed in place.
        region: (T,) int64, 0 to K-1, or -1 for a token that writes nothing.
        temperature: as `memory_read`.
        rate: EMA rate of a slot for one unit of mass, a float in (0, 1). It is compiled in, too.
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        The new memory (K, S, C) in the dtype of `memory`, and rho (K, S), in float32 for half-precision input.

    Raises:
        TypeError, ValueError, RuntimeError: as `memory_read`; ValueError too for a rate outside (0, 1).
    """
    _check(latent, memory, region, backend)
    _check_rate(rate)
    tensor, scale = checks.check_temperature(temperature, latent)
    if transforms.is_needed("memory_write", backend, latent, memory, tensor):
        return transforms.memory_write(latent, memory, region, tensor, scale, float(rate))
    return torch.ops.showface.memory_write(latent, memory, region, tensor, scale, float(rate), backend)


def memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, *, temperature: float | Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The first half of `memory_write`: the mass and the weighted sum that each slot receives.

    Both are sums over tokens. Processes that each hold a part of a batch can all-reduce them before `memory_blend`;
    the memory is then the one that a single process with the whole batch would compute. Source: *ours*.

    Args and errors as `memory_read`.

    Returns:
        rho (K, S) and total (K, S, C), in float32 for half-precision input, else in the dtype of `latent`.
    """
    _check(latent, memory, region, backend)
    tensor, scale = checks.check_temperature(temperature, latent)
    if transforms.is_needed("memory_accumulate", backend, latent, memory, tensor):
        return transforms.memory_accumulate(latent, memory, region, tensor, scale)
    return torch.ops.showface.memory_accumulate(latent, memory, region, tensor, scale, backend)


def memory_blend(memory: Tensor, rho: Tensor, total: Tensor, *, rate: float, backend: str = "auto") -> Tensor:
    """The second half of `memory_write`: blend accumulated sums into the memory.

    Args:
        memory: (K, S, C) floating point. Differentiable.
        rho, total: (K, S) and (K, S, C), of `memory_accumulate`. Differentiable.
        rate: as `memory_write`.
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        The new memory (K, S, C), dtype of `memory`; slots with `rho = 0` keep their exact bits.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or a rate outside (0, 1).
        RuntimeError: the backend was named and can't run; the message says why.
    """
    checks.check_tensor("memory", memory, "(K, S, C)")
    for name, x, shape in (("rho", rho, "(K, S)"), ("total", total, "(K, S, C)")):
        checks.check_tensor(name, x, shape)
        if x.device != memory.device:
            raise ValueError(f"{name} must be on {memory.device} like the first argument, got {checks.describe(x)}")
    _check_rate(rate)
    checks.check_backend(backend)
    if total.shape != memory.shape or rho.shape != memory.shape[:2]:
        raise ValueError(
            f"rho and total must have shapes (K, S) and (K, S, C) like memory {tuple(memory.shape)}, "
            f"got {tuple(rho.shape)} and {tuple(total.shape)}"
        )
    if transforms.is_needed("memory_blend", backend, memory, rho, total):
        return transforms.memory_blend(memory, rho, total, float(rate))
    return torch.ops.showface.memory_blend(memory, rho, total, float(rate), backend)


def memory_address(latent: Tensor, memory: Tensor, region: Tensor, *, temperature: float | Tensor) -> Tensor:
    """The attention weights of each token over the slots of its block. `memory_read` does not return them.

    For plots and statistics. It is plain PyTorch, differentiable, and copies each token's block. Source: *ours*.

    Args and errors as `memory_read`.

    Returns:
        (T, S), dtype of `latent`: each row sums to 1; the rows of tokens of region -1 are zeros.
    """
    _check(latent, memory, region, "auto")
    tensor, scale = checks.check_temperature(temperature, latent)
    checks.check_regions(region, memory.shape[0])
    checks.check_temperature_value(tensor, latent)
    z, m = widen(latent, memory)
    # Only a GPU can have other regions here, which count as -1. Indexing with them would end the CUDA context.
    region = torch.where(region < len(m), region, -1)
    with full_precision(z):
        return definitions.memory_address(z, m, region, temperature_factor(tensor, scale, z)).to(latent.dtype)


def _check(latent: Tensor, memory: Tensor, region: Tensor, backend: str) -> None:
    checks.check_tensor("latent", latent, "(T, C)")
    checks.check_tensor("memory", memory, "(K, S, C)", like=latent)
    checks.check_tensor("region", region, "(T,)", dtype=torch.int64, like=latent)
    checks.check_size("memory", memory, 2, latent.shape[1], "the channels of latent")
    checks.check_size("region", region, 0, latent.shape[0], "the tokens of latent")
    if memory.shape[0] == 0 or memory.shape[1] == 0:
        raise ValueError(f"memory must have at least one block and one slot, got shape {tuple(memory.shape)}")
    checks.check_backend(backend)


def _check_rate(rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(f"rate must be a float in (0, 1), got {checks.describe(rate)}")
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")


# The torch operators. The forward of a read also returns the log-sum-exp (base 2) of each softmax, for the backward.

_ADDRESS = "Tensor latent, Tensor memory, Tensor region"
_TEMPERATURE = "Tensor? temperature, float scale"
# torch omits trailing arguments that equal their default, so the implementations need the same default.
_BACKEND = "str backend='auto'"


def _checked_kernel(
    op: str, backend: str, latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None
) -> dispatch.Kernel:
    kernel = dispatch.kernel(op, backend, latent, memory)
    checks.check_regions(region, memory.shape[0])
    checks.check_temperature_value(temperature, latent)
    return kernel


def _read(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    kernel = _checked_kernel("memory_read", backend, latent, memory, region, temperature)
    return kernel.forward(latent, memory, None, region, temperature, scale)


def _read_backward(
    grad: Tensor,
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | None,
    scale: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = dispatch.kernel("memory_read", backend, latent, memory)
    grad_latent, grad_memory, _, grad_temperature = kernel.backward(
        grad, latent, memory, None, region, out, lse, temperature, scale
    )
    return grad_latent, grad_memory, grad_temperature


def _accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    kernel = _checked_kernel("memory_accumulate", backend, latent, memory, region, temperature)
    return kernel.forward(latent, memory, region, temperature, scale)


def _write(
    latent: Tensor,
    memory: Tensor,
    region: Tensor,
    temperature: Tensor | None,
    scale: float,
    rate: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    kernel = _checked_kernel("memory_write", backend, latent, memory, region, temperature)
    return kernel.forward(latent, memory, region, temperature, scale, rate)


def _blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float, backend: str = "auto") -> Tensor:
    dtype = accumulation_dtype(memory.dtype)
    return dispatch.kernel("memory_blend", backend, memory).forward(memory, rho.to(dtype), total.to(dtype), rate)


def _blend_backward(
    grad: Tensor, memory: Tensor, rho: Tensor, total: Tensor, rate: float, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(memory.dtype)
    grad_memory, grad_rho, grad_total = memory_gradients.blend_backward(
        grad, memory, rho.to(dtype), total.to(dtype), rate
    )
    return grad_memory, grad_rho.to(rho.dtype), grad_total.to(total.dtype)


def _fake_read(latent: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return latent.new_empty(latent.shape), latent.new_empty(latent.shape[:1], dtype=accumulation_dtype(latent.dtype))


def _fake_gradients(latent: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_temperature = latent.new_empty((), dtype=accumulation_dtype(latent.dtype))
    return latent.new_empty(latent.shape), memory.new_empty(memory.shape), grad_temperature


def _fake_sums(latent: Tensor, memory: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(latent.dtype)
    return memory.new_empty(memory.shape[:2], dtype=dtype), memory.new_empty(memory.shape, dtype=dtype)


declare(
    f"memory_read_with_lse({_ADDRESS}, {_TEMPERATURE}, {_BACKEND}) -> (Tensor, Tensor)",
    _read,
    _fake_read,
)
declare(
    f"memory_read_with_lse_backward(Tensor grad, {_ADDRESS}, Tensor out, Tensor lse, {_TEMPERATURE},"
    f" {_BACKEND}) -> (Tensor, Tensor, Tensor)",
    _read_backward,
    lambda grad, latent, memory, *_: _fake_gradients(latent, memory),
)
declare(
    f"memory_accumulate({_ADDRESS}, {_TEMPERATURE}, {_BACKEND}) -> (Tensor, Tensor)",
    _accumulate,
    _fake_sums,
)
declare(
    f"memory_accumulate_backward(Tensor grad_rho, Tensor grad_total, {_ADDRESS}, {_TEMPERATURE}, {_BACKEND})"
    " -> (Tensor, Tensor, Tensor)",
    memory_gradients.accumulate_backward,
    lambda grad_rho, grad_total, latent, memory, *_: _fake_gradients(latent, memory),
)
declare(
    f"memory_write({_ADDRESS}, {_TEMPERATURE}, float rate, {_BACKEND}) -> (Tensor, Tensor)",
    _write,
    lambda latent, memory, *_: (memory.new_empty(memory.shape), _fake_sums(latent, memory)[0]),
)
declare(
    f"memory_write_backward(Tensor grad, Tensor grad_rho, {_ADDRESS}, {_TEMPERATURE}, float rate, {_BACKEND})"
    " -> (Tensor, Tensor, Tensor)",
    memory_gradients.write_backward,
    lambda grad, grad_rho, latent, memory, *_: _fake_gradients(latent, memory),
)
declare(
    f"memory_blend(Tensor memory, Tensor rho, Tensor total, float rate, {_BACKEND}) -> Tensor",
    _blend,
    lambda memory, *_: memory.new_empty(memory.shape),
)
declare(
    f"memory_blend_backward(Tensor grad, Tensor memory, Tensor rho, Tensor total, float rate, {_BACKEND})"
    " -> (Tensor, Tensor, Tensor)",
    _blend_backward,
    lambda grad, memory, rho, total, *_: tuple(x.new_empty(x.shape) for x in (memory, rho, total)),
)


def _save_address(ctx: Any, args: Sequence[Any], result: Any) -> None:
    latent, memory, region, temperature, *ctx.rest = args
    ctx.save_for_backward(latent, memory, region, temperature)


def _save_read(ctx: Any, args: Sequence[Any], result: tuple[Tensor, Tensor]) -> None:
    latent, memory, region, temperature, *ctx.rest = args
    ctx.save_for_backward(latent, memory, region, *result, temperature)
    ctx.mark_non_differentiable(result[1])
    ctx.set_materialize_grads(False)  # otherwise each backward fills a gradient of the lse with zeros


def _save_blend(ctx: Any, args: Sequence[Any], result: Tensor) -> None:
    memory, rho, total, *ctx.rest = args
    ctx.save_for_backward(memory, rho, total)


def _gradient(op: str) -> Callable[..., tuple[Any, ...]]:
    """The gradients of the arguments (latent, memory, region, temperature, numbers and backend)."""

    def gradient(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if op == "memory_read_with_lse":
            grads = grads[:1]  # nothing depends on the lse
        backward = getattr(torch.ops.showface, f"{op}_backward")
        saved = ctx.saved_tensors  # activation checkpointing lets them be read once
        grad_latent, grad_memory, grad_tau = backward(*grads, *saved, *ctx.rest)
        temperature = saved[-1]
        to_temperature = None if temperature is None else grad_tau.to(temperature.dtype)
        return grad_latent, grad_memory, None, to_temperature, *(None for _ in ctx.rest)

    return gradient


def _blend_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    backward = torch.ops.showface.memory_blend_backward
    return *backward(grad, *ctx.saved_tensors, *ctx.rest), *(None for _ in ctx.rest)


differentiate("memory_read_with_lse", _gradient("memory_read_with_lse"), _save_read, public="memory_read")
declare_first(f"memory_read({_ADDRESS}, {_TEMPERATURE}, {_BACKEND}) -> Tensor", "memory_read_with_lse")
differentiate("memory_accumulate", _gradient("memory_accumulate"), _save_address)
differentiate("memory_write", _gradient("memory_write"), _save_address)
differentiate("memory_blend", _blend_gradient, _save_blend)
autocast("memory_read", cast=(0, 1))
autocast("memory_read_with_lse", cast=(0, 1))
# The memory accumulates many small updates, so writes stay in float32 under autocast.
autocast("memory_accumulate", cast=(0, 1), dtype=torch.float32)
autocast("memory_write", cast=(0, 1), dtype=torch.float32)
