// Every native operator's schema. The kernels are registered where they are written, in cpu/ and cuda/; the public
// operators with gradients, showface::*, are defined in Python and call these where they can.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(showface_C, m) {
  // latent (T, C), memory (K, S, C), value (K, S, V) or the memory itself, region (T,) int64 in -1..K-1, temperature ()
  // tf32: float32 products may be made of tf32, where the device has it
  // -> out (T, V), log_sum (T): the logarithm to base 2 of the sum under each token's softmax
  m.def(
      "memory_attend(Tensor latent, Tensor memory, Tensor? value, Tensor region, Tensor? temperature, float scale, "
      "bool tf32) -> (Tensor, Tensor)");
  // -> the gradients of latent, of memory, of value (nothing where that is the memory: then that of memory is the whole),
  // and shares in that of scale * temperature, to be summed
  m.def(
      "memory_attend_backward(Tensor grad, Tensor latent, Tensor memory, Tensor? value, Tensor region, Tensor out, "
      "Tensor log_sum, Tensor? temperature, float scale, bool tf32) -> (Tensor, Tensor, Tensor, Tensor)");
  // -> rho (K, S), total (K, S, C): the mass that lands in each slot, and the sum of the latents by it
  m.def(
      "memory_accumulate(Tensor latent, Tensor memory, Tensor region, Tensor? temperature, float scale, bool tf32) "
      "-> (Tensor, Tensor)");
  // accumulate and blend in one -> the new memory (K, S, C), rho (K, S)
  m.def(
      "memory_write(Tensor latent, Tensor memory, Tensor region, Tensor? temperature, float scale, float rate, "
      "bool tf32) -> (Tensor, Tensor)");
  m.def("memory_blend(Tensor memory, Tensor rho, Tensor total, float rate) -> Tensor");
  // query, key (B, N, C), value (B, N, Cv), hole (B, N) bool, temperature ()
  // -> out (B, N, Cv), log_sum (B, N): the logarithm to base 2 of the sum under each corrupted token's softmax
  m.def(
      "masked_correlation(Tensor query, Tensor key, Tensor value, Tensor hole, Tensor? temperature, float scale, "
      "bool all_keys, bool tf32) -> (Tensor, Tensor)");
  // -> the gradients of query, key, value and shares in that of scale * temperature, to be summed
  m.def(
      "masked_correlation_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor hole, Tensor out, "
      "Tensor log_sum, Tensor? temperature, float scale, bool all_keys, bool tf32) -> (Tensor, Tensor, Tensor, Tensor)");
}
