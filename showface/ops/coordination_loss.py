"""`coordination_loss`, the InCo² loss in time linear in the number of tokens: its API, schema and gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from showface.ops import checks, dispatch, transforms
from showface.ops.library import autocast, declare, differentiate
from showface.ops.precision import accumulation_dtype


def coordination_loss(
    features: Tensor, target: Tensor, hole: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The inter and intra coordination losses between features and their target.

    With unit features f and g and `D[i,j] = <f_i, f_j> - <g_i, g_j>`: inter is the mean of D² over i corrupted and
    j known, intra over i and j corrupted; each is the mean over the images that have such pairs. The
    computation is exact and takes O(N C²) time: it uses C x C matrices, not N x N ones.

    Source: the pair of losses is *stated*, their form is *ours*.

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
    if transforms.is_needed("coordination_loss", backend, features, target):
        return transforms.coordination_loss(features, target, hole)
    return torch.ops.showface.coordination_loss(features, target, hole, backend)


# The torch operators.

_ARGS = "Tensor features, Tensor target, Tensor hole"


def _forward(features: Tensor, target: Tensor, hole: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return dispatch.kernel("coordination_loss", backend, features).forward(features, target, hole)


def _backward(
    grad_inter: Tensor,
    grad_intra: Tensor,
    features: Tensor,
    target: Tensor,
    hole: Tensor,
    target_too: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    kernel = dispatch.kernel("coordination_loss", backend, features)
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


def _save(ctx: Any, args: Sequence[Any], result: Any) -> None:
    features, target, hole, *ctx.rest = args
    ctx.save_for_backward(features, target, hole)


def _gradient(ctx: Any, grad_inter: Tensor, grad_intra: Tensor) -> tuple[Any, ...]:
    # In most uses the target needs no gradient.
    target_too = ctx.needs_input_grad[1]
    features, target = torch.ops.showface.coordination_loss_backward(
        grad_inter, grad_intra, *ctx.saved_tensors, target_too, *ctx.rest
    )
    return features, target if target_too else None, None, *(None for _ in ctx.rest)


differentiate("coordination_loss", _gradient, _save)
# Runs in float32 under autocast, as torch's own losses do: D is a small difference of nearly equal numbers.
autocast("coordination_loss", cast=(0, 1), dtype=torch.float32)
