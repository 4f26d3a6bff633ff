// Attention within groups on CUDA. masked_correlation.cu and memory.cu build the groups and call these functions.
#pragma once

#include "launch.h"
#include "token_lists.cuh"

namespace showface {

struct Attention {
  const char* op;                           // For error messages.
  Tensor query, key, value;                 // (..., C), (..., C), (..., V), contiguous, used as matrices of rows.
  int64_t queries, keys, channels, values;  // Rows of query, rows of key and value, C, V.
  Groups groups;
  int64_t queries_per_group, keys_per_group;  // Expected sizes per group, used only to size launches.
  std::optional<Tensor> temperature;
  double scale;
  bool tf32;
  cudaStream_t stream;
  int multiprocessors;
  size_t shared_bytes;  // Bytes of shared memory that a block may use.
};

// Writes out (queries, V) and lse (queries), the log-sum-exp (base 2) of each query's scores. If only lse is wanted,
// out is null and V is 0.
void attention_forward(const Attention& call, Tensor* out, Tensor& lse);

// Returns partial sums of the gradient of scale * temperature. If grad_value is null, keys and values are one tensor,
// and grad_key gets both gradients.
Tensor attention_backward(const Attention& call, const Tensor& grad, const Tensor& out, const Tensor& lse,
                          Tensor& grad_query, Tensor& grad_key, Tensor* grad_value);

// Sums for each key over the queries of its group: total (keys, C) of weight * query, mass (keys) of weight. Only
// float32 and float64.
void attention_accumulate(const Attention& call, const Tensor& lse, Tensor& total, Tensor& mass);

// The same sums, blended into the keys as memory_blend does: blended (keys, C) and mass (keys).
void attention_write(const Attention& call, const Tensor& lse, double rate, Tensor& blended, Tensor& mass);

// blended (keys, C): key (keys, C) after total (keys, C) and mass (keys) are blended into it.
void blend_keys(const char* op, const Tensor& key, const Tensor& total, const Tensor& mass, double rate,
                Tensor& blended, cudaStream_t stream);

// The data of a contiguous tensor.
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
