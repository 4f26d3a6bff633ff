"""The "reference" backend: plain PyTorch, with explicit gradients. It runs on every device and in every dtype."""

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from showface.ops import definitions
from showface.ops.definitions import EPSILON, unit
from showface.ops.dispatch import register
from showface.ops.precision import AUTOCAST_KEYS, accumulation_dtype, temperature_factor, widen


def _below_autograd(function: Callable[..., Any]) -> Callable[..., Any]:
    """Skip the search of torch's own operators for gradients to record: 8% of the time of a small loss.

    And skip autocast, which has converted the arguments of the operator, and would round again in a backward inside it.
    """

    @wraps(function)
    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            return function(*args)

    return run


def unit_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x`, from the gradient of `unit(x)`."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    norm = length.clamp_min(EPSILON)
    # Below epsilon the norm is a constant, so nothing is projected out.
    delta = (grad * x).sum(-1, keepdim=True) / norm.square() * (length >= EPSILON)
    return (grad - delta * x) / norm


# Cosine attention of one group of queries to one group of keys: the corrupted and known tokens of an image, or the
# tokens of a region and its memory block. Only a few rows of weights are computed at a time, so that the memory used is
# linear and the weights stay in the cache.

_CHUNK = 2**19  # weights computed at a time


def _rows(queries: int, keys: int) -> list[slice]:
    step = max(_CHUNK // max(keys, 1), 1)
    return [slice(first, first + step) for first in range(0, queries, step)]


def attend(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean of the values with weights `softmax(temperature * <unit(query), unit(key)>)`; zeros if there is no key.

    Args:
        query: (R, C).
        key, value: (J, C) and (J, V).

    Returns:
        out (R, V), and lse (R,), the log-sum-exp (base 2) of each softmax, for the backward.
    """
    out, lse = value.new_zeros(len(query), value.shape[1]), value.new_zeros(len(query))
    if len(key):
        q, k = temperature * unit(query), unit(key).T
        for rows in _rows(len(query), len(key)):
            logits = q[rows] @ k
            total = logits.logsumexp(-1, keepdim=True)
            out[rows] = (logits - total).exp() @ value
            lse[rows] = total.squeeze(-1) / math.log(2)
    return out, lse


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and temperature, from the gradient of `out` and the results of `attend`."""
    q, k = unit(query), unit(key)
    grad_q, grad_k, grad_v = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    grad_temperature = query.new_zeros(())
    for rows in _rows(len(query), len(key)) if len(key) else ():
        weight = ((temperature * q[rows]) @ k.T - lse[rows, None] * math.log(2)).exp()
        delta = (grad[rows] * out[rows]).sum(-1, keepdim=True)
        grad_logit = weight * (grad[rows] @ value.T - delta)
        grad_row = grad_logit @ k
        grad_temperature += (grad_row * q[rows]).sum()
        grad_q[rows] = grad_row * temperature
        grad_k.addmm_(grad_logit.T, temperature * q[rows])
        grad_v.addmm_(weight.T, grad[rows])
    return unit_backward(grad_q, query), unit_backward(grad_k, key), grad_v, grad_temperature


# memory: region by region.


def _tokens_of_regions(region: Tensor, regions: int) -> Iterator[tuple[int, Tensor]]:
    for k in range(regions):
        yield k, (region == k).nonzero().squeeze(1)


@_below_autograd
def _memory_attend(
    latent: Tensor, memory: Tensor, value: Tensor | None, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    value = memory if value is None else value
    z, m, v = widen(latent, memory, value)
    tau = temperature_factor(temperature, scale, z)
    out, lse = z.new_zeros(len(z), v.shape[2]), z.new_zeros(len(z))
    for k, rows in _tokens_of_regions(region, len(m)):
        out[rows], lse[rows] = attend(z[rows], m[k], v[k], tau)
    return out.to(value.dtype), lse


@_below_autograd
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
    g, z, m, v, o = widen(grad, latent, memory, memory if value is None else value, out)
    tau = temperature_factor(temperature, scale, g)
    grad_z, grad_m, grad_v, grad_tau = torch.zeros_like(z), torch.zeros_like(m), torch.zeros_like(v), z.new_zeros(())
    for k, rows in _tokens_of_regions(region, len(m)):
        grad_z[rows], grad_m[k], grad_v[k], partial = attend_backward(
            g[rows], z[rows], m[k], v[k], o[rows], lse[rows], tau
        )
        grad_tau += partial
    if value is None:
        grad_m, grad_v = grad_m + grad_v, grad_v[:0]
    return grad_z.to(latent.dtype), grad_m.to(memory.dtype), grad_v.to(memory.dtype), grad_tau * scale


@_below_autograd
def _memory_accumulate(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    z, m = widen(latent, memory)
    tau = temperature_factor(temperature, scale, z)
    rho, total = m.new_zeros(m.shape[:2]), torch.zeros_like(m)
    for k, rows in _tokens_of_regions(region, len(m)):
        address = torch.softmax(tau * unit(z[rows]) @ unit(m[k]).T, dim=-1)
        rho[k], total[k] = address.sum(0), address.T @ z[rows]
    return rho, total


@_below_autograd
def _memory_blend(memory: Tensor, rho: Tensor, total: Tensor, rate: float) -> Tensor:
    return definitions.memory_blend(memory.to(rho.dtype), rho, total, rate).to(memory.dtype)


@_below_autograd
def _memory_write(
    latent: Tensor, memory: Tensor, region: Tensor, temperature: Tensor | None, scale: float, rate: float
) -> tuple[Tensor, Tensor]:
    rho, total = _memory_accumulate(latent, memory, region, temperature, scale)
    return _memory_blend(memory, rho, total, rate), rho


# masked_correlation: image by image.


def is_key(hole: Tensor, keys: str) -> Tensor:
    """The tokens that are keys, as a mask of the shape of `hole`: the known ones, or all."""
    return ~hole if keys == "valid" else torch.ones_like(hole)


@_below_autograd
def _masked_correlation(
    query: Tensor, key: Tensor, value: Tensor, hole: Tensor, temperature: Tensor | None, scale: float, keys: str
) -> tuple[Tensor, Tensor]:
    q, k, v = widen(query, key, value)
    tau = temperature_factor(temperature, scale, q)
    out, lse = torch.zeros_like(v, memory_format=torch.contiguous_format), v.new_zeros(hole.shape)
    for b, (rows, source) in enumerate(zip(hole, is_key(hole, keys), strict=True)):
        out[b, rows], lse[b, rows] = attend(q[b, rows], k[b, source], v[b, source], tau)
    return out.to(value.dtype), lse


@_below_autograd
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
    g, q, k, v, o = widen(grad, query, key, value, out)
    tau = temperature_factor(temperature, scale, g)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grad_tau = q.new_zeros(())
    for b, (rows, source) in enumerate(zip(hole, is_key(hole, keys), strict=True)):
        grad_q[b, rows], grad_k[b, source], grad_v[b, source], partial = attend_backward(
            g[b, rows], q[b, rows], k[b, source], v[b, source], o[b, rows], lse[b, rows], tau
        )
        grad_tau += partial
    return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype), grad_tau * scale


# coordination_loss.

# Let X = [F + G, F - G], X_I the rows of X in a set I, and S_I = X_I^T X_I. Let X' be X with its two column halves
# exchanged, and S' be S with its halves exchanged in both rows and columns. Then D = X_I X'_J^T / 2, and therefore
#   sum of D² = 1/4 <S_I, S'_J>.
# Every term contains F - G twice, so there is no cancellation when F is close to G.


def _moments(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X (B, N, 2C), and S for the corrupted and for the known rows, each (B, 2C, 2C)."""
    dtype = accumulation_dtype(features.dtype)
    f, g = unit(features.to(dtype)), unit(target.to(dtype))
    x = torch.cat([f + g, f - g], dim=-1)
    corrupted = x * hole[..., None]
    known = x - corrupted
    return x, corrupted.mT @ corrupted, known.mT @ known


def _exchanged(moments: Tensor) -> Tensor:
    """S', from S: both halves exchanged in rows and columns."""
    return moments.roll((moments.shape[-1] // 2,) * 2, dims=(1, 2))


def _weights(hole: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weights of each image's sums of D² in inter and in intra, each (B,); 0 for an image without such pairs."""
    corrupted, known = hole.sum(1).to(dtype), (~hole).sum(1).to(dtype)

    def weights(pairs: Tensor) -> Tensor:
        has_pairs = pairs > 0
        return has_pairs / (pairs.clamp_min(1) * has_pairs.sum().clamp_min(1))

    return weights(corrupted * known), weights(corrupted**2)


def coordination_loss(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    x, corrupted, known = _moments(features, target, hole)
    across, within = _weights(hole, x.dtype)
    exchanged = _exchanged(corrupted)
    inter = (known * exchanged).sum((1, 2)) * across
    intra = (corrupted * exchanged).sum((1, 2)) * within
    return inter.sum() / 4, intra.sum() / 4


@_below_autograd
def _coordination_loss_backward(
    grad_inter: Tensor, grad_intra: Tensor, features: Tensor, target: Tensor, hole: Tensor, target_too: bool
) -> tuple[Tensor, Tensor]:
    x, corrupted, known = _moments(features, target, hole)
    across, within = (w[:, None, None] for w in _weights(hole, x.dtype))
    exchanged = _exchanged(corrupted)
    # The gradient of X is X times a matrix: one matrix for the corrupted rows, another for the known rows.
    by_corrupted = grad_inter * across / 2 * _exchanged(known) + grad_intra * within * exchanged
    by_known = grad_inter * across / 2 * exchanged

    def gradient(of: Tensor, sign: int) -> Tensor:
        """Add the halves of the gradient of X for `features` (sign 1), or subtract them for `target` (sign -1)."""

        def rows(matrix: Tensor) -> Tensor:
            plus, minus = matrix.chunk(2, dim=-1)
            return x @ (plus + sign * minus)

        grad = torch.where(hole[..., None], rows(by_corrupted), rows(by_known))
        return unit_backward(grad, of.to(x.dtype)).to(of.dtype)

    return gradient(features, 1), gradient(target, -1) if target_too else target.new_empty(0)


register("memory_read", "reference", _memory_attend, _memory_attend_backward)
register("memory_accumulate", "reference", _memory_accumulate)
register("memory_write", "reference", _memory_write)
register("memory_blend", "reference", _memory_blend)
register("masked_correlation", "reference", _masked_correlation, _masked_correlation_backward)
register("coordination_loss", "reference", _below_autograd(coordination_loss), _coordination_loss_backward)
