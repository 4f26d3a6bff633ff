"""InCo² loss in linear cost: how far the correlations inside a result are from those inside its target."""

from typing import Any

import torch
from torch import Tensor

from showface.ops import backends, checks
from showface.ops.definitions import unit
from showface.ops.library import autocast, declare, differentiate
from showface.ops.reference import accumulation_dtype, unit_backward


def coordination_loss(
    features: Tensor, target: Tensor, hole: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The inter and the intra coordination loss of features against their target.

    With unit features f and g and `D[i,j] = <f_i, f_j> - <g_i, g_j>`: inter is the mean of D² over i corrupted and
    j known, intra over i and j corrupted; each is the mean over the images that have such pairs. It is computed
    exactly in O(N C²) by way of C x C matrices. Source: the pair of losses is *stated*, their form is *ours*.

    Args:
        features: (B, N, C) floating point. Differentiable.
        target: (B, N, C), dtype of `features`. Differentiable.
        hole: (B, N) bool, True = corrupted.
        backend: "auto" or "reference".

    Returns:
        inter and intra, two 0-d tensors, in float32 for half-precision input, else in the dtype of `features`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.
        RuntimeError: the backend was named and can't run; the message says why.
    """
    checks.check_tensor("features", features, "(B, N, C)")
    checks.check_tensor("target", target, "(B, N, C)", like=features)
    checks.check_tensor("hole", hole, "(B, N)", dtype=torch.bool, like=features)
    for dim, meaning in enumerate(("the batch of features", "the tokens of features", "the channels of features")):
        checks.check_size("target", target, dim, features.shape[dim], meaning)
        if dim < 2:
            checks.check_size("hole", hole, dim, features.shape[dim], meaning)
    checks.check_backend(backend)
    return torch.ops.showface.coordination_loss(features, target, hole, backend)


# With P = F + G and Q = F - G the difference of correlations is D = (Q P^T + P Q^T) / 2, so that for row sets I, J
#   sum of D² = 1/4 (<A_I, B_J> + <B_I, A_J> + 2 <M_I, M_J^T>),   A = Q^T Q, B = P^T P, M = Q^T P.
# Every term holds Q twice, so nothing cancels when F is near G.


class _Moments:
    """P and Q of one row set, rows outside of it zero, with their C x C moments."""

    def __init__(self, p: Tensor, q: Tensor, rows: Tensor) -> None:
        weight = rows[..., None].to(p.dtype)
        self.p, self.q = p * weight, q * weight
        self.a = self.q.mT @ self.q
        self.b = self.p.mT @ self.p
        self.m = self.q.mT @ self.p
        self.count = rows.sum(1).to(p.dtype)  # (B,)

    def squares(self, other: "_Moments") -> Tensor:
        """The sum of D² over I x J: (B,)."""
        terms = self.a * other.b + self.b * other.a + 2 * self.m * other.m.mT
        return terms.sum((1, 2)) / 4

    def gradient(self, other: "_Moments", weight: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of `weight * squares(other)` in this set's P and Q."""
        scale = weight[:, None, None] / 2
        return scale * (self.p @ other.a + self.q @ other.m.mT), scale * (self.q @ other.b + self.p @ other.m)


def _moments(features: Tensor, target: Tensor, hole: Tensor) -> tuple[_Moments, _Moments]:
    dtype = accumulation_dtype(features.dtype)
    f, g = unit(features.to(dtype)), unit(target.to(dtype))
    return _Moments(f + g, f - g, hole), _Moments(f + g, f - g, ~hole)


def _weights(pairs: Tensor) -> Tensor:
    """What each image's sum of squares weighs in the mean over its pairs and over images that have any: (B,)."""
    has_pairs = pairs > 0
    return has_pairs / (pairs.clamp_min(1) * has_pairs.sum().clamp_min(1))


def _forward_reference(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    corrupted, known = _moments(features, target, hole)
    inter = corrupted.squares(known) * _weights(corrupted.count * known.count)
    intra = corrupted.squares(corrupted) * _weights(corrupted.count**2)
    return inter.sum(), intra.sum()


def _backward_reference(
    grad_inter: Tensor, grad_intra: Tensor, features: Tensor, target: Tensor, hole: Tensor
) -> tuple[Tensor, Tensor]:
    corrupted, known = _moments(features, target, hole)
    across = grad_inter * _weights(corrupted.count * known.count)
    within = grad_intra * _weights(corrupted.count**2)
    grad_p = grad_q = torch.zeros_like(corrupted.p)
    # Inside the hole both factors of the product are the same set, so its gradient counts twice.
    for own, other, weight in (
        (corrupted, known, across),
        (known, corrupted, across),
        (corrupted, corrupted, 2 * within),
    ):
        step_p, step_q = own.gradient(other, weight)
        grad_p, grad_q = grad_p + step_p, grad_q + step_q
    dtype = grad_p.dtype
    return (
        unit_backward(grad_p + grad_q, features.to(dtype)).to(features.dtype),
        unit_backward(grad_p - grad_q, target.to(dtype)).to(target.dtype),
    )


backends.register("coordination_loss", "reference", _forward_reference, _backward_reference)


# The torch operators.

_ARGS = "Tensor features, Tensor target, Tensor hole"


def _forward(features: Tensor, target: Tensor, hole: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return backends.kernel("coordination_loss", backend, features).forward(features, target, hole)


def _backward(
    grad_inter: Tensor, grad_intra: Tensor, features: Tensor, target: Tensor, hole: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    kernel = backends.kernel("coordination_loss", backend, features)
    return kernel.backward(grad_inter, grad_intra, features, target, hole)


def _fake(features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(features.dtype)
    return features.new_empty((), dtype=dtype), features.new_empty((), dtype=dtype)


declare(f"coordination_loss({_ARGS}, str backend='auto') -> (Tensor, Tensor)", _forward, _fake)
declare(
    f"coordination_loss_backward(Tensor grad_inter, Tensor grad_intra, {_ARGS}, str backend='auto')"
    " -> (Tensor, Tensor)",
    _backward,
    lambda grad_inter, grad_intra, *inputs: tuple(x.new_empty(x.shape) for x in inputs[:2]),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    features, target, hole, ctx.backend = inputs
    ctx.save_for_backward(features, target, hole)


def _gradient(ctx: Any, grad_inter: Tensor, grad_intra: Tensor) -> tuple[Any, ...]:
    grads = torch.ops.showface.coordination_loss_backward(grad_inter, grad_intra, *ctx.saved_tensors, ctx.backend)
    return *grads, None, None


differentiate("coordination_loss", _gradient, _setup)
# Like torch's own losses it runs in float32: it is a small difference of near-equal numbers.
autocast("coordination_loss", cast=(0, 1), dtype=torch.float32)
