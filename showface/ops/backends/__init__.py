"""One module for each backend: what calls its kernels, what it can't take, and its registration with the dispatcher."""

from showface.ops.backends import cpp, cuda, reference, triton

__all__ = ["cpp", "cuda", "reference", "triton"]
