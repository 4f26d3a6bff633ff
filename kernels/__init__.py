"""The Triton kernels, one module for each operator's file in `showface.ops`. Importing this imports no Triton."""
