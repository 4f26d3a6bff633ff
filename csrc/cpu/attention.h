// Cosine attention on the CPU in float32, float64 and, where the processor has products of it, bfloat16. The queries of
// each group attend to the keys of the same group. A group is an image (corrupted tokens and known tokens), or a region
// (its tokens and the slots of its memory block).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../common/tensors.h"

namespace showface {

using torch::headeronly::BFloat16;

constexpr int64_t kKeyFill = 8;  // Padding of key_rows and value_rows, in pointers.

// One group: its queries, keys and values, and pointers to the results. Results that are not wanted stay null. S is the
// type of sums.
template <typename T, typename S = T>
struct Group {
  int64_t queries, keys, channels, values;
  S temperature;
  const T *query, *grad;  // rows of C and of V elements, indexed by query_index
  const int64_t *query_index, *key_index;
  const T *const *key_rows, *const *value_rows;  // (keys + kKeyFill): the padding points to any valid row
  T *out, *grad_query;                           // indexed by query_index
  S* lse;                                        // indexed by query_index
  T *grad_key, *grad_value;                      // indexed by key_index
  bool tied;                                     // the values are the keys: grad_value is added to grad_key
  T *rho, *total;                                // (keys), (keys, C)
  T* blended;                                    // (keys, C): the keys after the write, instead of total
  double log_keep;                               // log of the fraction of a key that remains per unit of rho
};

// Computes out and lse of each query. lse is the log-sum-exp (base 2) of its scores.
template <typename T>
void attend(const std::vector<Group<T>>& groups);

// Computes grad_query, grad_key and grad_value from grad, out and lse. Returns the gradient of the temperature.
template <typename T>
double attend_backward(const std::vector<Group<T>>& groups);

// The same in bfloat16 with sums in float32, for processors with AVX512-BF16.
bool has_bf16();
void attend(const std::vector<Group<BFloat16, float>>& groups);
double attend_backward(const std::vector<Group<BFloat16, float>>& groups);

// Computes rho, the sum of the weights of each key, and either total, the weighted sum of the queries, or blended.
template <typename T>
void accumulate(const std::vector<Group<T>>& groups);

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// An uninitialised array, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (std::max<int64_t>(size, 1) * sizeof(T) + 63) / 64 * 64))) {
    STD_TORCH_CHECK(data_ != nullptr, "showface: out of memory");
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

// to = from + gain * (total / rho - from) with gain = 1 - exp(rho * log_keep), or `from` if rho is 0. `to` and `total`
// may be the same array.
template <typename T>
inline void blend(const T* from, T rho, const T* total, double log_keep, int64_t width, T* to) {
  if (!(rho > 0)) {
    std::copy(from, from + width, to);
    return;
  }
  const T gain = static_cast<T>(-std::expm1(rho * log_keep));
  // A division, since 1 / rho is infinite for the smallest masses.
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) to[i] = from[i] + gain * (total[i] / rho - from[i]);
}

// Scratch memory of this thread. It is kept between calls, since a new allocation would cost more than the arithmetic
// of a small problem.
template <typename T>
T* scratch_of_thread(int64_t size) {
  thread_local int64_t held = 0;
  thread_local std::unique_ptr<Buffer<T>> buffer;
  if (size > held) {
    buffer.reset();
    buffer = std::make_unique<Buffer<T>>(size);
    held = size;
  }
  return buffer->get();
}

// Run task(i, scratch) for i in 0 .. count - 1 on torch's threads. A thread takes the next task as soon as it is free.
template <typename T, typename Task>
void run_tasks(int64_t count, int64_t scratch_size, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    T* scratch = scratch_of_thread<T>(std::max<int64_t>(scratch_size, 1));
    for (; begin < end; ++begin) {
      for (int64_t i = next++; i < count; i = next++) task(i, scratch);
    }
  });
}

// The dtype of the tensor. Raises unless it is float32 or float64.
inline ScalarType check_cpu_type(const char* op, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, " on the CPU takes float32 and float64");
  return type;
}

inline double temperature_of(const std::optional<Tensor>& temperature, double scale) {
  if (!temperature.has_value()) return scale;
  return scale * load_scalar<double>(temperature->const_data_ptr(), temperature->scalar_type());
}

// Call run(temperature) in the dtype of the tensor, float32 or float64.
template <typename Run>
void in_type_of(const char* op, const Tensor& tensor, const std::optional<Tensor>& temperature, double scale,
                const Run& run) {
  const double tau = temperature_of(temperature, scale);
  check_cpu_type(op, tensor) == ScalarType::Float ? run(static_cast<float>(tau)) : run(tau);
}

}  // namespace showface
