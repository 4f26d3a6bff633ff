"""The operators of showface as a kernel for the package `kernels`. It needs PyTorch alone, not showface."""

from . import layers
from .operators import masked_correlation, memory_read

__all__ = ["layers", "masked_correlation", "memory_read"]
