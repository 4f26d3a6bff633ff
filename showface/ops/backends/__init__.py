"""One module per backend: the calls of its kernels, its limits, and its registration with the dispatcher."""

from showface.ops.backends import cpp, cuda, reference, triton

__all__ = ["cpp", "cuda", "reference", "triton"]
