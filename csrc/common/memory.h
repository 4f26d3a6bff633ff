// What the CPU and the CUDA kernels of memory_read share: the shapes, and the checks that keep them inside memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>

namespace showface {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Vectors shorter than this are scaled as if they had this length.
constexpr double kMinNorm = 1e-6;

struct MemoryShape {
  int64_t tokens;    // T
  int64_t regions;   // K
  int64_t slots;     // S
  int64_t channels;  // C
};

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

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
  if (temperature.has_value()) {
    STD_TORCH_CHECK(temperature->dim() == 0 && is_floating(temperature->scalar_type()),
                    "memory_read: temperature must be a 0-d floating-point tensor");
    STD_TORCH_CHECK(temperature->device() == latent.device(),
                    "memory_read: temperature must be on the device of latent");
  }
  return {latent.size(0), memory.size(0), memory.size(1), memory.size(2)};
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The number at `data`, whatever floating-point type it is stored in; 1 where there is none.
template <typename T>
C10_HOST_DEVICE inline T load_scalar(const void* data, ScalarType type) {
  if (data == nullptr) return T(1);
  switch (type) {
    case ScalarType::Double: return static_cast<T>(*static_cast<const double*>(data));
    case ScalarType::Half: return static_cast<T>(static_cast<float>(*static_cast<const c10::Half*>(data)));
    case ScalarType::BFloat16: return static_cast<T>(static_cast<float>(*static_cast<const c10::BFloat16*>(data)));
    default: return static_cast<T>(*static_cast<const float*>(data));
  }
}

}  // namespace showface
