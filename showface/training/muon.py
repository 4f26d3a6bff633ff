"""Muon, an optimizer whose steps change all directions of a weight matrix equally fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

SMALLEST = 16  # rows and columns of a matrix that Muon trains

# Coefficients of Jordan et al.'s iteration. It brings singular values near 1 quickly, but not to exactly 1.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(Optimizer):
    """Muon for matrices and convolutions, AdamW for the other parameters.

    A step of Muon is the momentum of the gradient with its singular values set to about 1. A convolution
    (out, in, h, w) is a matrix (out, h * w * in). Steps are scaled to the size of AdamW's usual steps, so AdamW's
    learning rates fit.

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024; the scale is from Liu et
    al., *Muon is Scalable for LLM Training*, 2025. Unlike `torch.optim.Muon`, it takes convolutions. The sources leave
    output heads and embeddings to AdamW; that they are trained as other matrices is *ours*.

    Args:
        parameters: those with at least SMALLEST rows and columns as a matrix are trained by Muon.
        lr: the learning rate of all parameters.
        betas: the decay of the momentum, for Muon and AdamW, and of AdamW's squared gradients.
        weight_decay: decoupled weight decay.
        dtype: of the iteration. bfloat16 is accurate enough, but slow on CPUs that can't multiply it.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in parameters:
            (matrices if _is_matrix(parameter) else others).append(parameter)
        settings: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        self._adamw = AdamW([{"params": others}], **settings, fused=True)
        super().__init__([{"params": matrices}, *self._adamw.param_groups], settings)
        self._dtype = dtype

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise ValueError: the groups are those that the constructor makes, one for Muon and one for AdamW."""
        if len(self.param_groups) == 2:
            raise ValueError("Muon takes all parameters at once: give them to its constructor")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_adamw": self._adamw, "_dtype": self._dtype}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group, *others = self.param_groups
        self._adamw.param_groups, self._adamw.state = others, self.state  # loading a state replaces them
        self._adamw.step()
        # Matrices of one shape are orthogonalised together: a network has many small ones.
        same_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                update = self._momentum(parameter, group["betas"][0]).movedim(1, -1).flatten(1)
                same_shape.setdefault(tuple(update.shape), []).append((parameter, update))
        for shape, pairs in same_shape.items():
            updates = orthogonalise(torch.stack([update for _, update in pairs]), self._dtype)
            size = 0.2 * max(shape) ** 0.5  # makes the root mean square of a step 0.2, as AdamW's is
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                weights = parameter.movedim(1, -1)
                weights.add_(update.view_as(weights), alpha=-group["lr"] * size)
        return loss

    def _momentum(self, parameter: Tensor, decay: float) -> Tensor:
        """Nesterov's momentum of the gradient."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"].lerp_(gradient, 1 - decay)
        return gradient.lerp(mean, decay)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(N, m, n) with all singular values set to about 1 (0.7 to 1.2 if they are not tiny), in the dtype of `matrices`.

    Source: the Newton-Schulz iteration of Jordan et al., 2024.

    Args:
        matrices: any floating dtype. A matrix of zeros stays zero.
        dtype: of the iteration.
    """
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)  # then no singular value is above 1
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=_CUBIC, alpha=_QUINTIC)
        x = torch.baddbmm(x, polynomial, x, beta=_LINEAR)
    return (x.mT if tall else x).to(matrices.dtype)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST
