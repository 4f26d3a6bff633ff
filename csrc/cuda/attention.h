// Attention within groups on CUDA, for those who have the lists of what belongs together: masked_correlation.cu, memory.cu.
#pragma once

#include "launch.h"
#include "token_lists.cuh"

namespace showface {

struct Attention {
  const char* op;  // for error messages
  Tensor query, key, value;  // (..., C), (..., C), (..., V), contiguous, taken as lists of rows
  int64_t queries, keys, channels, values;  // rows of the three (there are as many values as keys), and C and V
  Groups groups;
  int64_t queries_each, keys_each;  // what a group has of both, for all that the host knows: the launches are sized by it
  std::optional<Tensor> temperature;
  double scale;
  bool tf32;
  cudaStream_t stream;
  int multiprocessors;
};

// out: (queries, V); null where only log_sum (queries) is asked for, and V is 0 then.
void attention_forward(const Attention& call, Tensor* out, Tensor& log_sum);

// Returns shares in the gradient of scale * temperature. Without `grad_value` the values are the keys, and grad_key gets
// both gradients.
Tensor attention_backward(const Attention& call, const Tensor& grad, const Tensor& out, const Tensor& log_sum,
                          Tensor& grad_query, Tensor& grad_key, Tensor* grad_value);

// For each key, total (keys, C) and mass (keys): the sum over its group's queries of weight * query, and of the weight. In
// float32 and float64 only.
void attention_accumulate(const Attention& call, const Tensor& log_sum, Tensor& total, Tensor& mass);

// The same sums blended into the keys, memory_blend's way: blended (keys, C), and mass.
void attention_write(const Attention& call, const Tensor& log_sum, double rate, Tensor& blended, Tensor& mass);

// Blend sums, (keys, C) and (keys), into key (keys, C).
void blend_keys(const char* op, const Tensor& key, const Tensor& total, const Tensor& mass, double rate, Tensor& blended,
                cudaStream_t stream);

// The numbers of a tensor, contiguous.
template <typename T>
const T* numbers(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* numbers_to_fill(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline unsigned blocks_of(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace showface
