"""Masked correlation mining, the operator of the Mask-Region Enhanced Module: known tokens answer for corrupted."""

from typing import Any

import torch
from torch import Tensor

from showface import native
from showface.ops import backends, checks
from showface.ops.definitions import unit
from showface.ops.library import LIBRARY, autocast, declare, differentiate
from showface.ops.reference import accumulation_dtype, attend, attend_backward, wide


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
    """Answer each corrupted token with a mean of values, weighted by its correlation with the keys.

    `out[b,i] = sum over j of softmax_j(temperature * <unit(query[b,i]), unit(key[b,j])>) * value[b,j]` for
    corrupted i; zeros for known i, and for an image without keys. The work is |corrupted| x |keys|.
    Source: the mining of correlations into the corrupted region is *stated*, this form of it is *ours*.

    Args:
        query, key: (B, N, C) floating point. Differentiable.
        value: (B, N, Cv), dtype of `query`; Cv may differ from C. Differentiable.
        hole: (B, N) bool, True = corrupted.
        temperature: positive, multiplies the cosine; a float, or a 0-d tensor, which is differentiable.
        keys: "valid" for the known tokens only, "all" for every token.
        backend: "auto", "reference", "cpp", "cuda" or "triton".

    Returns:
        (B, N, Cv), dtype of `value`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value. On a GPU values inside tensors are
            not looked at.
        RuntimeError: the backend was named and can't run; the message says why.
    """
    checks.check_tensor("query", query, "(B, N, C)")
    checks.check_tensor("value", value, "(B, N, Cv)", like=query)
    _check(query, keys, key=key, value=value, hole=hole)
    checks.check_backend(backend)
    tensor, scale = checks.check_temperature(temperature, query)
    return torch.ops.showface.masked_correlation(query, key, value, hole, tensor, scale, keys, backend)


def _check(query: Tensor, keys: str, **others: Tensor) -> None:
    """What has the batch and the tokens of `query`, a checked (B, N, C): `key` and `hole`, and more if there is."""
    checks.check_tensor("key", others["key"], "(B, N, C)", like=query)
    checks.check_tensor("hole", others["hole"], "(B, N)", dtype=torch.bool, like=query)
    for name, x in others.items():
        checks.check_size(name, x, 0, query.shape[0], "the batch of query")
        checks.check_size(name, x, 1, query.shape[1], "the tokens of query")
    checks.check_size("key", others["key"], 2, query.shape[2], "the channels of query")
    if keys not in ("valid", "all"):
        raise ValueError(f"keys must be 'valid' or 'all', got {keys!r}")


def correlation_rows(
    query: Tensor,
    key: Tensor,
    hole: Tensor,
    tokens: Tensor,
    *,
    temperature: float | Tensor,
    keys: str = "valid",
) -> Tensor:
    """What chosen corrupted tokens look at: their rows of the correlation map, without the rest of it.

    For pictures and statistics; plain PyTorch, differentiable. Source: *ours*.

    Args:
        query, key, hole, temperature, keys: as `masked_correlation`.
        tokens: (B, R) int64, 0 to N-1, R tokens of each image.

    Returns:
        (B, R, N), dtype of `query`: each row sums to 1, and is 0 for tokens that are no keys. The row of a known token,
        and of an image without keys, is 0.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or value.
    """
    checks.check_tensor("query", query, "(B, N, C)")
    checks.check_tensor("tokens", tokens, "(B, R)", dtype=torch.int64, like=query)
    checks.check_size("tokens", tokens, 0, query.shape[0], "the batch of query")
    _check(query, keys, key=key, hole=hole)
    tensor, scale = checks.check_temperature(temperature, query)
    checks.check_positive(tensor)
    q_all, k_all, tau = wide(tensor, scale, query, key)
    chosen = torch.take_along_dim(unit(q_all), tokens[..., None], dim=1)
    source = _sources(hole, keys)[:, None]
    logits = (tau * chosen @ unit(k_all).mT).masked_fill(~source, -torch.inf)
    # A row without any key would be NaN, and so would its gradient.
    logits = torch.where(source.any(-1, keepdim=True), logits, 0)
    asks = torch.take_along_dim(hole, tokens, dim=1)[..., None]
    return (torch.softmax(logits, dim=-1) * (asks & source)).to(query.dtype)


# The reference backend, image by image.


def _sources(hole: Tensor, keys: str) -> Tensor:
    return ~hole if keys == "valid" else torch.ones_like(hole)


def _forward_reference(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    q, k, v, tau = wide(temperature, scale, query, key, value)
    out, log_sum = torch.zeros_like(v, memory_format=torch.contiguous_format), v.new_zeros(hole.shape)
    for b, (rows, source) in enumerate(zip(hole, _sources(hole, keys), strict=True)):
        out[b, rows], log_sum[b, rows] = attend(q[b, rows], k[b, source], v[b, source], tau)
    return out.to(value.dtype), log_sum


def _backward_reference(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | None,
    scale: float,
    keys: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, q, k, v, o, tau = wide(temperature, scale, grad, query, key, value, out)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grad_tau = q.new_zeros(())
    for b, (rows, source) in enumerate(zip(hole, _sources(hole, keys), strict=True)):
        grad_q[b, rows], grad_k[b, source], grad_v[b, source], share = attend_backward(
            g[b, rows], q[b, rows], k[b, source], v[b, source], o[b, rows], log_sum[b, rows], tau
        )
        grad_tau += share
    return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype), grad_tau * scale


# The compiled and Triton backends.


def _forward_cpp(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    q, k, v, _ = wide(None, 1.0, query, key, value)  # it works in float32 and float64
    out, log_sum = torch.ops.showface_C.masked_correlation(q, k, v, hole, temperature, scale, keys == "all", False)
    return out.to(value.dtype), log_sum


def _backward_cpp(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, hole: Tensor, out: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_sum, temperature, scale, keys = rest
    g, q, k, v, o, _ = wide(None, 1.0, grad, query, key, value, out)
    backward = torch.ops.showface_C.masked_correlation_backward
    grad_q, grad_k, grad_v, grad_tau = backward(g, q, k, v, hole, o, log_sum, temperature, scale, keys == "all", False)
    return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype), grad_tau.sum() * scale


def _forward_cuda(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, scale, keys = args
    return native.cuda_library(args[0]).masked_correlation(*tensors, scale, keys == "all", native.allow_tf32())


def _backward_cuda(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, scale, keys = args
    backward = native.cuda_library(args[1]).masked_correlation_backward
    *grads, shares = backward(*tensors, scale, keys == "all", native.allow_tf32())
    return *grads, shares.sum() * scale


def _forward_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from showface.kernels import masked_correlation as kernels

    *tensors, scale, keys = args
    return kernels.masked_correlation(*tensors, scale, keys == "all")


def _backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from showface.kernels import masked_correlation as kernels

    *tensors, scale, keys = args
    *grads, grad_tau = kernels.masked_correlation_backward(*tensors, scale, keys == "all")
    return *grads, grad_tau * scale


def _refuses_triton(query: Tensor, value: Tensor) -> str | None:
    """What its kernels can't address, and on a GPU, float64, which Triton can't multiply there."""
    if query.shape[1] * max(query.shape[2], value.shape[2]) >= 2**31:
        return "its triton kernel takes images of less than 2**31 numbers"
    if query.shape[0] > 65535:
        return f"its triton kernel takes up to 65,535 images, not {query.shape[0]}"
    if query.is_cuda and query.dtype == torch.float64:
        return "its triton kernel takes no float64 on a GPU"
    return None


backends.register("masked_correlation", "reference", _forward_reference, _backward_reference)
backends.register("masked_correlation", "cpp", _forward_cpp, _backward_cpp)
backends.register("masked_correlation", "cuda", _forward_cuda, _backward_cuda, refuses=backends.refuses_cuda)
backends.register("masked_correlation", "triton", _forward_triton, _backward_triton, refuses=_refuses_triton)


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
    kernel = backends.kernel("masked_correlation", backend, query, value)
    checks.check_positive(temperature)
    return kernel.forward(query, key, value, hole, temperature, scale, keys)


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hole: Tensor,
    out: Tensor,
    log_sum: Tensor,
    temperature: Tensor | None,
    scale: float,
    keys: str,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = backends.kernel("masked_correlation", backend, query, value)
    return kernel.backward(grad, query, key, value, hole, out, log_sum, temperature, scale, keys)


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, hole: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape), value.new_empty(hole.shape, dtype=accumulation_dtype(value.dtype))


def _fake_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    grad_temperature = query.new_empty((), dtype=accumulation_dtype(query.dtype))
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), grad_temperature


def _answer(*args: Any) -> Tensor:
    return torch.ops.showface.masked_correlation_rows(*args)[0]


# The forward also gives, for its backward, the logarithm to base 2 of the sum under each corrupted token's softmax.
declare(f"masked_correlation_rows({_ARGS}, str backend='auto') -> (Tensor, Tensor)", _forward, _fake_forward)
declare(
    "masked_correlation_rows_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor hole, Tensor out,"
    " Tensor log_sum, Tensor? temperature, float scale, str keys, str backend='auto')"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_gradients,
)
LIBRARY.define(f"masked_correlation({_ARGS}, str backend='auto') -> Tensor")
LIBRARY.impl("masked_correlation", _answer, "CompositeImplicitAutograd")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, key, value, hole, temperature, *ctx.rest = inputs
    ctx.save_for_backward(query, key, value, hole, *output, temperature)


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    temperature = ctx.saved_tensors[-1]
    backward = torch.ops.showface.masked_correlation_rows_backward
    *grads, grad_temperature = backward(grad, *ctx.saved_tensors, *ctx.rest)
    grad_temperature = None if temperature is None else grad_temperature.to(temperature.dtype)
    return *grads, None, grad_temperature, None, None, None


differentiate("masked_correlation_rows", _gradient, _setup, public="masked_correlation")
autocast("masked_correlation_rows", cast=(0, 1, 2))
