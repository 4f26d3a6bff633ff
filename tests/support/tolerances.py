"""Tolerances for results in each dtype against the float64 definition, and helpers for the comparison."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (results, gradients), relative to the largest expected value.
TOLERANCES = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-3, 4e-3),
    torch.bfloat16: (1.6e-2, 3.2e-2),
}


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype | None = None, *, gradient: bool = False) -> None:
    """Check shape and values against an expectation in float64.

    `dtype` is the dtype of the computation, by default that of `got`. The error is relative to the
    largest expected value. A single number is a sum whose terms may cancel: if it is below 0.1, the error is relative
    to 0.1.
    """
    assert got.shape == expected.shape
    tolerance = TOLERANCES[dtype or got.dtype][gradient]
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    assert got.isfinite().all()
    if expected.numel():
        scale = max(expected.abs().max().item(), 0.0 if expected.dim() else 0.1)
        error = (got - expected).abs().max().item()
        assert error <= tolerance * scale, f"off by {error:.3g} where values reach {scale:.3g}"


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of a weighted sum of a function's outputs. Inputs that need no gradient are left out."""
    inputs = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = function(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    total = sum((x.double() * w.to(x.device)).sum() for x, w in zip(outputs, weights, strict=True))
    return list(torch.autograd.grad(total, [x for x in inputs if x.requires_grad]))
