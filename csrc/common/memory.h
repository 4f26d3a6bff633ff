// Shapes and argument checks of memory addressing, used by the CPU and the CUDA kernels.
#pragma once

#include "tensors.h"

namespace showface {

struct MemoryShape {
  int64_t tokens;    // T
  int64_t regions;   // K
  int64_t slots;     // S
  int64_t channels;  // C
  int64_t values;    // V; equal to C if the slots are the values
};

// latent (T, C), memory (K, S, C), value (K, S, V), region (T,), temperature (); all on one device.
inline MemoryShape check_memory(const char* op, const Tensor& latent, const Tensor& memory,
                                const std::optional<Tensor>& value, const Tensor& region,
                                const std::optional<Tensor>& temperature) {
  STD_TORCH_CHECK(latent.dim() == 2 && memory.dim() == 3, op, ": latent must be (T, C), memory (K, S, C)");
  STD_TORCH_CHECK(region.dim() == 1 && region.size(0) == latent.size(0), op,
                  ": region must be (T,) with T = ", latent.size(0));
  STD_TORCH_CHECK(memory.size(2) == latent.size(1), op, ": latent has ", latent.size(1), " channels, memory has ",
                  memory.size(2));
  STD_TORCH_CHECK(memory.size(0) > 0 && memory.size(1) > 0, op, ": memory has no slots");
  STD_TORCH_CHECK(memory.scalar_type() == latent.scalar_type(), op, ": latent and memory differ in dtype");
  STD_TORCH_CHECK(region.scalar_type() == ScalarType::Long, op, ": region must be int64");
  STD_TORCH_CHECK(memory.device() == latent.device() && region.device() == latent.device(), op,
                  ": latent, memory and region must be on one device");
  if (value.has_value()) {
    STD_TORCH_CHECK(value->dim() == 3 && value->size(0) == memory.size(0) && value->size(1) == memory.size(1) &&
                        value->scalar_type() == memory.scalar_type() && value->device() == memory.device(),
                    op, ": value must be (K, S, V), with the dtype and device of memory");
  }
  check_temperature(op, temperature, latent);
  return {latent.size(0), memory.size(0), memory.size(1), memory.size(2),
          value.has_value() ? value->size(2) : memory.size(2)};
}

// grad, out (T, V), lse (T,): the gradient and the results of the forward.
inline void check_memory_results(const char* op, const MemoryShape& shape, const Tensor& latent, const Tensor& grad,
                                 const Tensor& out, const Tensor& lse) {
  const ScalarType type = latent.scalar_type();
  check_saved(op, "grad", grad, {shape.tokens, shape.values}, type, latent);
  check_saved(op, "out", out, {shape.tokens, shape.values}, type, latent);
  check_saved(op, "lse", lse, {shape.tokens}, type_of_sums(type), latent);
}

// memory, total (K, S, C), rho (K, S), all on one device; total and rho of one dtype.
inline void check_memory_blend(const Tensor& memory, const Tensor& rho, const Tensor& total) {
  STD_TORCH_CHECK(memory.dim() == 3 && total.dim() == 3 && rho.dim() == 2,
                  "memory_blend: memory and total must be (K, S, C), rho (K, S)");
  for (int64_t dim = 0; dim < 3; ++dim) {
    STD_TORCH_CHECK(total.size(dim) == memory.size(dim) && (dim == 2 || rho.size(dim) == memory.size(dim)),
                    "memory_blend: the shapes of rho and total must match memory");
  }
  STD_TORCH_CHECK(
      rho.scalar_type() == total.scalar_type() && rho.device() == memory.device() && total.device() == memory.device(),
      "memory_blend: rho and total must have the same dtype, and all tensors must be on one device");
}

}  // namespace showface
