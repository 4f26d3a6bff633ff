"""The Triton kernels, with one module per operator of `showface.ops`. This file itself does not import Triton."""
