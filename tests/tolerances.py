"""How close a result in each dtype must come to the definition in float64, and the comparison that applies it."""

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
    """Check shape and values against an expectation in float64; `dtype` is what was computed in, `got`'s by default."""
    assert got.shape == expected.shape
    tolerance = TOLERANCES[dtype or got.dtype][gradient]
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    assert got.isfinite().all()
    if expected.numel():
        scale = expected.abs().max().item()
        error = (got - expected).abs().max().item()
        assert error <= tolerance * scale, f"off by {error:.3g} where values reach {scale:.3g}"
