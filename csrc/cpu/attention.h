// Attention by cosine on the CPU, float32 and float64: groups of queries, each with keys and values of its own. An image's
// corrupted and known tokens are such a group, or a region's tokens and its block of memory.
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

constexpr int64_t kKeyFill = 8;  // pointers that key_rows and value_rows hold beyond the last key

// One group: who asks, who answers, and where the results go. Results that are not asked for stay null.
template <typename T>
struct Group {
  int64_t queries, keys, channels, values;
  T temperature;
  const T *query, *grad;                // rows of C and of V, found by query_index
  const int64_t *query_index, *key_index;
  const T* const *key_rows, *const *value_rows;  // (keys + kKeyFill): past the last key, any row that exists
  T *out, *log_sum, *grad_query;        // by query_index
  T *grad_key, *grad_value;             // by key_index; without grad_value, its part is added to grad_key
  T *rho, *total;                       // (keys), (keys, C)
  T* blended;                           // (keys, C): instead of total, the keys moved towards their mean query
  double log_keep;                      // by the share 1 - exp(rho * log_keep)
};

// out and log_sum of every query: the answer, and the logarithm to base 2 of the sum under its softmax.
template <typename T>
void attend(const std::vector<Group<T>>& groups);

// From grad, out and log_sum to grad_query, grad_key and grad_value. Returns the gradient of the temperature.
template <typename T>
double attend_backward(const std::vector<Group<T>>& groups);

// rho and total or blended: the weights that each key gets, and the sum of the queries by these weights.
template <typename T>
void accumulate(const std::vector<Group<T>>& groups);

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Uninitialised numbers, aligned to a cache line.
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

// to = from + gain * (total / rho - from) with gain = 1 - exp(rho * log_keep); `from` itself where there is no mass. `to` may
// be `total`.
template <typename T>
inline void blend(const T* from, T rho, const T* total, double log_keep, int64_t width, T* to) {
  if (!(rho > 0)) {
    std::copy(from, from + width, to);
    return;
  }
  const T gain = static_cast<T>(-std::expm1(rho * log_keep)), inverse = T(1) / rho;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) to[i] = from[i] + gain * (total[i] * inverse - from[i]);
}

// Memory of this thread for tasks to write to, kept for the next call: to get it from the system anew each time would cost
// more than a small problem's arithmetic.
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

// Run task(i, scratch) for i in 0 .. count - 1 on torch's threads, each as soon as one is free.
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

// The type that the CPU kernels work in. Raises for others than float32 and float64.
inline ScalarType check_cpu_type(const char* op, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, " on the CPU takes float32 and float64");
  return type;
}

inline double temperature_of(const std::optional<Tensor>& temperature, double scale) {
  if (!temperature.has_value()) return scale;
  return scale * load_scalar<double>(temperature->const_data_ptr(), temperature->scalar_type());
}

}  // namespace showface
