// Helpers for tensors, used by the CPU and the CUDA kernels of all operators.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace showface {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Norms are clamped to this value from below.
constexpr double kMinNorm = 1e-6;
// log-sum-exps are in base 2: exp(x) is exp2(x * kLog2E).
constexpr double kLog2E = 1.44269504088896340736;

C10_HOST_DEVICE constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// The dtype of sums, such as log-sum-exps, of numbers of a dtype.
inline ScalarType type_of_sums(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16 ? ScalarType::Float : type;
}

// Checks a gradient, or a result of the forward, that a backward is given.
inline void check_saved(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> size,
                        ScalarType type, const Tensor& like) {
  bool fits = tensor.dim() == static_cast<int64_t>(size.size()) && tensor.scalar_type() == type &&
              tensor.device() == like.device();
  int64_t dim = 0;
  for (const int64_t wanted : size) fits = fits && tensor.size(dim++) == wanted;
  STD_TORCH_CHECK(fits, op, ": the shape, dtype and device of ", name, " must be those of the forward's result");
}

inline void check_temperature(const char* op, const std::optional<Tensor>& temperature, const Tensor& like) {
  if (!temperature.has_value()) return;
  STD_TORCH_CHECK(temperature->dim() == 0 && is_floating(temperature->scalar_type()), op,
                  ": temperature must be a 0-d floating-point tensor");
  STD_TORCH_CHECK(temperature->device() == like.device(), op,
                  ": temperature must be on the same device as the other tensors");
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// New contiguous tensors on the device of `like`. torch::stable::new_empty() takes longer, because it looks the
// operator up by its name at each call.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, ScalarType type) {
  int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle tensor;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), size.begin(), static_cast<int64_t>(size.size()),
                                                          &dtype, nullptr, nullptr, 0, nullptr, &tensor));
  return Tensor(tensor);
}
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size) {
  return empty(like, size, like.scalar_type());
}
inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> size, ScalarType type) {
  int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle tensor;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_zeros(like.get(), size.begin(), static_cast<int64_t>(size.size()),
                                                          &dtype, nullptr, nullptr, 0, nullptr, &tensor));
  return Tensor(tensor);
}
inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> size) {
  return zeros(like, size, like.scalar_type());
}

// The number at `data`, stored in a floating-point type `type`; 1 if `data` is null.
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
