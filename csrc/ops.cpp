// The schemas of all native operators. The kernels are registered in cpu/ and cuda/. The public operators showface::*,
// with autograd, are defined in Python and call these.
//
// Common arguments: the temperature is scale * temperature, and a missing tensor counts as 1. tf32: float32 products
// may use tf32 tensor cores (ignored on the CPU). lse is the log-sum-exp (base 2) of a query's scores.
#include "common/library.h"

STABLE_TORCH_LIBRARY(SHOWFACE_LIBRARY, m) {
  // latent (T, C), memory (K, S, C), value (K, S, V), region (T,) int64, temperature (). Without value, the slots are
  // the values. A region outside 0..K-1 counts as none.
  // -> out (T, V), lse (T,)
  m.def(
      "memory_attend(Tensor latent, Tensor memory, Tensor? value, Tensor region, Tensor? temperature, float scale, "
      "bool tf32) -> (Tensor, Tensor)");
  // -> the gradients of latent, memory and value, and partial sums of the gradient of scale * temperature, which the
  // caller adds up. Without value, the gradient of memory includes that of the values, and the gradient of value is
  // empty.
  m.def(
      "memory_attend_backward(Tensor grad, Tensor latent, Tensor memory, Tensor? value, Tensor region, Tensor out, "
      "Tensor lse, Tensor? temperature, float scale, bool tf32) -> (Tensor, Tensor, Tensor, Tensor)");
  // Over the tokens of each slot's region: -> rho (K, S), the sum of the weights, and total (K, S, C), the weighted sum
  // of the latents.
  m.def(
      "memory_accumulate(Tensor latent, Tensor memory, Tensor region, Tensor? temperature, float scale, bool tf32) "
      "-> (Tensor, Tensor)");
  // memory_accumulate and memory_blend in one call -> the new memory (K, S, C), rho (K, S)
  m.def(
      "memory_write(Tensor latent, Tensor memory, Tensor region, Tensor? temperature, float scale, float rate, "
      "bool tf32) -> (Tensor, Tensor)");
  // memory (K, S, C), rho (K, S), total (K, S, C)
  // -> memory + (1 - (1 - rate) ** rho) * (total / rho - memory); unchanged where rho is 0
  m.def("memory_blend(Tensor memory, Tensor rho, Tensor total, float rate) -> Tensor");
  // query, key (B, N, C), value (B, N, Cv), hole (B, N) bool (true = corrupted), temperature (). The corrupted tokens
  // attend to all tokens of their image with all_keys, otherwise to the known ones.
  // -> out (B, N, Cv), lse (B, N); zeros for known tokens
  m.def(
      "masked_correlation(Tensor query, Tensor key, Tensor value, Tensor hole, Tensor? temperature, float scale, "
      "bool all_keys, bool tf32) -> (Tensor, Tensor)");
  // -> the gradients of query, key and value, and partial sums of the gradient of scale * temperature, which the caller
  // adds up
  m.def(
      "masked_correlation_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor hole, Tensor out, "
      "Tensor lse, Tensor? temperature, float scale, bool all_keys, bool tf32) -> (Tensor, Tensor, Tensor, Tensor)");
  // CUDA only. Keys of `channels` and values of `values` numbers, with the dtype of `like`; `memory` for the operators
  // memory_*, `sums` for memory_accumulate and memory_write.
  // -> bytes of shared memory that a block needs at least, and those that the device of `like` has. Raises if the
  // kernels can't run there: they were not compiled for it, or its driver is too old.
  m.def("shared_bytes(Tensor like, int channels, int values, bool memory, bool sums) -> (int, int)");
}
