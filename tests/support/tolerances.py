"""How close a result in each dtype must come to the definition in float64, and the helpers that compare."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Relative to the largest number expected: (results, gradients).
TOLERANCES = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-3, 4e-3),
    torch.bfloat16: (1.6e-2, 3.2e-2),
}


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype | None = None, *, gradient: bool = False) -> None:
    """Check shape and values against an expectation in float64; `dtype` is what was computed in, `got`'s by default.

    A single number is a sum whose terms may cancel: it is measured by 0.1 where it is smaller.
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
    """The gradients of a weighted sum of a function's outputs; inputs that take none are left out."""
    inputs = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = function(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    total = sum((x.double() * w.to(x.device)).sum() for x, w in zip(outputs, weights, strict=True))
    return list(torch.autograd.grad(total, [x for x in inputs if x.requires_grad]))
