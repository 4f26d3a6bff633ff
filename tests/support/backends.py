"""The dtypes that each backend is tested in."""

import torch

from showface.ops import dispatch

# The interpreter computes bfloat16 in float32, and gradcheck goes through float64. On a GPU, they refuse float64.
TRITON = {
    "cpu": frozenset({torch.float32, torch.float16}),
    "cuda": frozenset({torch.float32, torch.float16, torch.bfloat16}),
}


def dtypes_of(backend: str, device: str) -> list[torch.dtype]:
    """The dtypes in which tests run a backend."""
    return sorted(TRITON[device] if backend == "triton" else dispatch.FLOATS, key=str)
