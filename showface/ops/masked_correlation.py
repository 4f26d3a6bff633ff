"""`masked_correlation`, the operator of the Mask-Region Enhanced Module: its API, schema and gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from showface.ops import checks, dispatch, transforms
from showface.ops.library import autocast, declare, declare_first, differentiate
from showface.ops.precision import accumulation_dtype


def masked_correlation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    *,
    temperature: float | Tensor,
    keys: str = "valid",
    backend: str = "auto",
) -> Tensor:
    """Compute for each corrupted token a mean of the values, weighted by its correlation with the keys.

    `out[b,i] = sum over j of softmax_j(temperature * <unit(query[b,i]), unit(key[b,j])>) * value[b,j]` for
    corrupted i; zeros for known i, and for an image without keys. The work is |corrupted| x |keys|.
    Source: the mining of correlations into the corrupted region is *stated*, this form of it is *ours*.

    Args:
        query, key: (B, N, C) floating point. Differentiable.
        value: (B, N, Cv), dtype of `query`; Cv may differ from C. Differentiable.
        hole: (B, N) bool, True = corrupted.
        temperature: multiplies the cosine; a float, or a 0-d tensor, which is differentiable. Positive and at most
            1e5 (1e13 for float64), above which rounding errors decide the weights. Under torch.compile pass a 0-d
            tensor if it changes: a float is compiled in.
        keys: "valid" for the known tokens only, "all" for every token.
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        (B, N, Cv), dtype of `value`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value. On a GPU, values inside tensors
            are not checked.
        RuntimeError: the backend was named and can't run; the message says why.
    """
    checks.check_tensor("query", query, "(B, N, C)")
    checks.check_tensor("key", key, "(B, N, C)", like=query)
    checks.check_tensor("value", value, "(B, N, Cv)", like=query)
    checks.check_tensor("hole", hole, "(B, N)", dtype=torch.bool, like=query)
    for name, x in (("key", key), ("value", value), ("hole", hole)):
        checks.check_size(name, x, 0, query.shape[0], "the batch of query")
        checks.check_size(name, x, 1, query.shape[1], "the tokens of query")
    checks.check_size("key", key, 2, query.shape[2], "the channels of query")
    if keys not in ("valid", "all"):
        raise ValueError(f"keys must be 'valid' or 'all', got {keys!r}")
    checks.check_backend(backend)
    tensor, scale = checks.check_temperature(temperature, query)
    if transforms.is_needed("masked_correlation", backend, query, key, value, tensor):
        return transforms.masked_correlation(query, key, value, hole, tensor, scale, keys)
    return torch.ops.showface.masked_correlation(query, key, value, hole, tensor, scale, keys, backend)


# The torch operators.

_ARGS = "Tensor query, Tensor key, Tensor value, Tensor hole, Tensor? temperature, float scale, str keys"


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    temperature: Tensor | None,
    scale: float,
    keys: str,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    kernel = dispatch.kernel("masked_correlation", backend, query, value)
    checks.check_temperature_value(temperature, query)
    return kernel.forward(query, key, value, hole, temperature, scale, keys)


def _backward(
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
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = dispatch.kernel("masked_correlation", backend, query, value)
    return kernel.backward(grad, query, key, value, hole, out, lse, temperature, scale, keys)


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, hole: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape), value.new_empty(hole.shape, dtype=accumulation_dtype(value.dtype))


def _fake_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    grad_temperature = query.new_empty((), dtype=accumulation_dtype(query.dtype))
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), grad_temperature


# The forward also returns what its backward needs: the log-sum-exp (base 2) of each corrupted token's softmax.
declare(f"masked_correlation_with_lse({_ARGS}, str backend='auto') -> (Tensor, Tensor)", _forward, _fake_forward)
declare(
    "masked_correlation_with_lse_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor hole, Tensor out,"
    " Tensor lse, Tensor? temperature, float scale, str keys, str backend='auto')"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_gradients,
)


def _save(ctx: Any, args: Sequence[Any], result: Any) -> None:
    query, key, value, hole, temperature, *ctx.rest = args
    ctx.save_for_backward(query, key, value, hole, *result, temperature)
    ctx.mark_non_differentiable(result[1])
    ctx.set_materialize_grads(False)  # otherwise each backward fills a gradient of the lse with zeros


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # activation checkpointing lets them be read once
    temperature = saved[-1]
    backward = torch.ops.showface.masked_correlation_with_lse_backward
    *grads, grad_temperature = backward(grad, *saved, *ctx.rest)
    grad_temperature = None if temperature is None else grad_temperature.to(temperature.dtype)
    return *grads, None, grad_temperature, *(None for _ in ctx.rest)


differentiate("masked_correlation_with_lse", _gradient, _save, public="masked_correlation")
declare_first(f"masked_correlation({_ARGS}, str backend='auto') -> Tensor", "masked_correlation_with_lse")
autocast("masked_correlation", cast=(0, 1, 2))
autocast("masked_correlation_with_lse", cast=(0, 1, 2))
