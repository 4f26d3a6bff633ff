// Shapes and argument checks of masked_correlation, used by the CPU and the CUDA kernels.
#pragma once

#include "tensors.h"

namespace showface {

struct CorrelationShape {
  int64_t batch;     // B
  int64_t tokens;    // N
  int64_t channels;  // C, of queries and keys
  int64_t values;    // Cv
};

// query, key (B, N, C), value (B, N, Cv), hole (B, N) bool, temperature (); all on one device.
inline CorrelationShape check_correlation(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                                          const Tensor& hole, const std::optional<Tensor>& temperature) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && hole.dim() == 2, op,
                  ": query, key and value must be (B, N, C), hole (B, N)");
  const CorrelationShape shape{query.size(0), query.size(1), query.size(2), value.size(2)};
  STD_TORCH_CHECK(key.size(2) == shape.channels, op, ": query has ", shape.channels, " channels, key has ",
                  key.size(2));
  for (const Tensor* tensor : {&key, &value, &hole}) {
    STD_TORCH_CHECK(tensor->size(0) == shape.batch && tensor->size(1) == shape.tokens, op,
                    ": key, value and hole must have the batch and tokens of query");
    STD_TORCH_CHECK(tensor->device() == query.device(), op, ": all tensors must be on one device");
  }
  STD_TORCH_CHECK(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(), op,
                  ": query, key and value differ in dtype");
  STD_TORCH_CHECK(hole.scalar_type() == ScalarType::Bool, op, ": hole must be bool");
  check_temperature(op, temperature, query);
  return shape;
}

// grad, out (B, N, Cv), lse (B, N): the gradient and the results of the forward.
inline void check_correlation_results(const char* op, const CorrelationShape& shape, const Tensor& query,
                                      const Tensor& grad, const Tensor& out, const Tensor& lse) {
  const ScalarType type = query.scalar_type();
  check_saved(op, "grad", grad, {shape.batch, shape.tokens, shape.values}, type, query);
  check_saved(op, "out", out, {shape.batch, shape.tokens, shape.values}, type, query);
  check_saved(op, "lse", lse, {shape.batch, shape.tokens}, type_of_sums(type), query);
}

}  // namespace showface
