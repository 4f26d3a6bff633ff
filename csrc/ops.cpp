// Every native operator's schema. The kernels are registered where they are written, in cpu/ and cuda/; the public
// operators with gradients, showface::*, are defined in Python and call these where they can.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(showface_C, m) {
  // latent (T, C), memory (K, S, C), region (T,) int64 in -1..K-1, temperature () -> (T, C)
  m.def("memory_read(Tensor latent, Tensor memory, Tensor region, Tensor? temperature, float scale) -> Tensor");
}
