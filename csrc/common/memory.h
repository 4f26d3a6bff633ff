// What the CPU and the CUDA kernels of memory_read share: the shapes, and the checks that keep them inside memory.
#pragma once

#include "tensors.h"

namespace showface {

struct MemoryShape {
  int64_t tokens;    // T
  int64_t regions;   // K
  int64_t slots;     // S
  int64_t channels;  // C
};

// latent (T, C), memory (K, S, C), region (T,), temperature (); all on one device.
inline MemoryShape check_memory_read(const Tensor& latent, const Tensor& memory, const Tensor& region,
                                     const std::optional<Tensor>& temperature) {
  STD_TORCH_CHECK(latent.dim() == 2, "memory_read: latent must be (T, C), got ", latent.dim(), " dimensions");
  STD_TORCH_CHECK(memory.dim() == 3, "memory_read: memory must be (K, S, C), got ", memory.dim(), " dimensions");
  STD_TORCH_CHECK(region.dim() == 1 && region.size(0) == latent.size(0),
                  "memory_read: region must be (T,) with T = ", latent.size(0));
  STD_TORCH_CHECK(memory.size(2) == latent.size(1), "memory_read: latent has ", latent.size(1),
                  " channels, memory has ", memory.size(2));
  STD_TORCH_CHECK(memory.size(1) > 0, "memory_read: memory has no slots");
  STD_TORCH_CHECK(memory.scalar_type() == latent.scalar_type(), "memory_read: latent and memory differ in dtype");
  STD_TORCH_CHECK(region.scalar_type() == ScalarType::Long, "memory_read: region must be int64");
  STD_TORCH_CHECK(memory.device() == latent.device() && region.device() == latent.device(),
                  "memory_read: latent, memory and region must be on one device");
  check_temperature("memory_read", temperature, latent);
  return {latent.size(0), memory.size(0), memory.size(1), memory.size(2)};
}

}  // namespace showface
