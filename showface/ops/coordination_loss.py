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


# With X = [F + G, F - G], the rows X_I of a set I, S_I = X_I^T X_I, and S' for S with its halves exchanged in rows and
# columns, D = X_I X'_J^T / 2 and so
#   sum of D² = 1/4 <S_I, S'_J>.
# Every term holds F - G twice, so nothing cancels when F is near G.


def _moments(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X (B, N, 2C), and S of the corrupted and of the known rows, each (B, 2C, 2C)."""
    dtype = accumulation_dtype(features.dtype)
    f, g = unit(features.to(dtype)), unit(target.to(dtype))
    x = torch.cat([f + g, f - g], dim=-1)
    corrupted = x * hole[..., None]
    known = x - corrupted
    return x, corrupted.mT @ corrupted, known.mT @ known


def _exchanged(moments: Tensor) -> Tensor:
    """S' of S."""
    return moments.roll((moments.shape[-1] // 2,) * 2, dims=(1, 2))


def _weights(hole: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What an image's sums of D² weigh in inter and in intra, the means over pairs and images that have any: (B,)."""
    corrupted, known = hole.sum(1).to(dtype), (~hole).sum(1).to(dtype)

    def weights(pairs: Tensor) -> Tensor:
        has_pairs = pairs > 0
        return has_pairs / (pairs.clamp_min(1) * has_pairs.sum().clamp_min(1))

    return weights(corrupted * known), weights(corrupted**2)


def _forward_reference(features: Tensor, target: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    x, corrupted, known = _moments(features, target, hole)
    across, within = _weights(hole, x.dtype)
    exchanged = _exchanged(corrupted)
    inter = (known * exchanged).sum((1, 2)) * across
    intra = (corrupted * exchanged).sum((1, 2)) * within
    return inter.sum() / 4, intra.sum() / 4


def _backward_reference(
    grad_inter: Tensor, grad_intra: Tensor, features: Tensor, target: Tensor, hole: Tensor, target_too: bool
) -> tuple[Tensor, Tensor]:
    x, corrupted, known = _moments(features, target, hole)
    across, within = (w[:, None, None] for w in _weights(hole, x.dtype))
    exchanged = _exchanged(corrupted)
    # The gradient of X is X times one matrix in the corrupted rows and another in the known ones.
    by_corrupted = grad_inter * across / 2 * _exchanged(known) + grad_intra * within * exchanged
    by_known = grad_inter * across / 2 * exchanged

    def gradient(of: Tensor, sign: int) -> Tensor:
        """From that of [F + G, F - G]: the sum of its halves for F, their difference for G."""

        def rows(matrix: Tensor) -> Tensor:
            plus, minus = matrix.chunk(2, dim=-1)
            return x @ (plus + sign * minus)

        grad = torch.where(hole[..., None], rows(by_corrupted), rows(by_known))
        return unit_backward(grad, of.to(x.dtype)).to(of.dtype)

    return gradient(features, 1), gradient(target, -1) if target_too else target.new_empty(0)


backends.register("coordination_loss", "reference", _forward_reference, _backward_reference)


# The torch operators.

_ARGS = "Tensor features, Tensor target, Tensor hole"


def _forward(features: Tensor, target: Tensor, hole: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return backends.kernel("coordination_loss", backend, features).forward(features, target, hole)


def _backward(
    grad_inter: Tensor,
    grad_intra: Tensor,
    features: Tensor,
    target: Tensor,
    hole: Tensor,
    target_too: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    kernel = backends.kernel("coordination_loss", backend, features)
    return kernel.backward(grad_inter, grad_intra, features, target, hole, target_too)


def _fake(features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(features.dtype)
    return features.new_empty((), dtype=dtype), features.new_empty((), dtype=dtype)


declare(f"coordination_loss({_ARGS}, str backend='auto') -> (Tensor, Tensor)", _forward, _fake)
declare(
    f"coordination_loss_backward(Tensor grad_inter, Tensor grad_intra, {_ARGS}, bool target_too, str backend='auto')"
    " -> (Tensor, Tensor)",
    _backward,
    lambda grad_inter, grad_intra, features, target, hole, target_too, backend="auto": (
        features.new_empty(features.shape),
        target.new_empty(target.shape if target_too else (0,)),
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    features, target, hole, ctx.backend = inputs
    ctx.save_for_backward(features, target, hole)


def _gradient(ctx: Any, grad_inter: Tensor, grad_intra: Tensor) -> tuple[Any, ...]:
    # The target is mostly data, whose gradient nobody asks for.
    target_too = ctx.needs_input_grad[1]
    features, target = torch.ops.showface.coordination_loss_backward(
        grad_inter, grad_intra, *ctx.saved_tensors, target_too, ctx.backend
    )
    return features, target if target_too else None, None, None


differentiate("coordination_loss", _gradient, _setup)
# Like torch's own losses it runs in float32: it is a small difference of near-equal numbers.
autocast("coordination_loss", cast=(0, 1), dtype=torch.float32)
