"""The native operators with gradients. `_ops` is written by tools/hf_kernels.py and names their namespace."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix, ops

_TF32 = False  # ignored on the CPU


def masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, *, temperature: float | Tensor, keys: str = "valid"
) -> Tensor:
    """Give each corrupted token a mean of the values, weighted by the cosine of its query and their keys.

    Args:
        query, key: (B, N, C) floating point. Differentiable.
        value: (B, N, Cv), dtype of `query`. Differentiable.
        hole: (B, N) bool, True = corrupted.
        temperature: multiplies the cosine; a positive float, or a 0-d tensor, which is differentiable.
        keys: "valid" for the known tokens only, "all" for every token.

    Returns:
        (B, N, Cv), dtype of `value`; zeros for known tokens.

    Raises:
        ValueError: `keys` is something else.
        RuntimeError: a wrong dtype, shape or device.
    """
    if keys not in ("valid", "all"):
        raise ValueError(f"keys must be 'valid' or 'all', got {keys!r}")
    tensor, scale = _split(temperature)
    q, k, v = _widen(query, key, value)
    return ops.masked_correlation(q, k, v, hole, tensor, scale, keys == "all", _TF32)[0].to(value.dtype)


def memory_read(latent: Tensor, memory: Tensor, region: Tensor, *, temperature: float | Tensor) -> Tensor:
    """Give each latent a mean of the slots in its region's block of the memory, weighted by their cosine.

    Args:
        latent: (T, C) floating point. Differentiable.
        memory: (K, S, C), dtype of `latent`. Differentiable.
        region: (T,) int64, 0 to K-1; any other number reads zeros.
        temperature: multiplies the cosine; a positive float, or a 0-d tensor, which is differentiable.

    Returns:
        (T, C), dtype of `latent`.

    Raises:
        RuntimeError: a wrong dtype, shape or device.
    """
    tensor, scale = _split(temperature)
    z, m = _widen(latent, memory)
    return ops.memory_attend(z, m, None, region, tensor, scale, _TF32)[0].to(latent.dtype)


def _split(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, float(temperature))


def _widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision in float32, in which the kernels compute on any processor."""
    return tuple(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in tensors)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """The arguments are tensors, then the scale, then flags."""
    at = next(index for index, x in enumerate(inputs) if isinstance(x, float))
    ctx.scale, ctx.rest = inputs[at], inputs[at + 1 :]
    ctx.save_for_backward(*inputs[:at], *output)


def _correlation_gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *inputs, temperature, out, lse = ctx.saved_tensors
    *grads, partials = ops.masked_correlation_backward(grad, *inputs, out, lse, temperature, ctx.scale, *ctx.rest)
    return *grads, None, _of_temperature(partials, temperature, ctx.scale), None, None, None


def _memory_gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    latent, memory, value, region, temperature, out, lse = ctx.saved_tensors
    grad_latent, grad_memory, _, partials = ops.memory_attend_backward(
        grad, latent, memory, value, region, out, lse, temperature, ctx.scale, *ctx.rest
    )
    return grad_latent, grad_memory, None, None, _of_temperature(partials, temperature, ctx.scale), None, None


def _of_temperature(partials: Tensor, temperature: Tensor | None, scale: float) -> Tensor | None:
    return None if temperature is None else (partials.sum() * scale).to(temperature.dtype)


def _like(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape)


def _register(name: str, fake: Callable[..., Any], fake_backward: Callable[..., Any], gradients: Any) -> None:
    op = add_op_namespace_prefix(name)
    torch.library.register_fake(op)(fake)
    torch.library.register_fake(f"{op}_backward")(fake_backward)
    torch.library.register_autograd(op, gradients, setup_context=_save)


_register(
    "masked_correlation",
    lambda query, key, value, *_: (_like(value, *value.shape), _like(query, *query.shape[:2])),
    lambda grad, query, key, value, *_: (*(torch.empty_like(x) for x in (query, key, value)), _like(query)),
    _correlation_gradients,
)
_register(
    "memory_attend",
    lambda latent, *_: (_like(latent, *latent.shape), _like(latent, latent.shape[0])),
    lambda grad, latent, memory, *_: (
        *(torch.empty_like(x) for x in (latent, memory)),
        _like(memory, 0),
        _like(latent),
    ),
    _memory_gradients,
)
