// masked_correlation on the CPU: one group per image. Its queries are the corrupted tokens, its keys the known ones or
// all.
#include <tuple>

#include "../common/library.h"
#include "../common/masked_correlation.h"
#include "attention.h"

namespace showface {
namespace {

// The groups of a batch, one per image, and their lists of tokens.
template <typename T, typename S>
struct Images {
  std::vector<int64_t> index;
  std::vector<const T*> rows;
  std::vector<Group<T, S>> groups;

  Images(const CorrelationShape& shape, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hole,
         S temperature, bool all_keys)
      : index(2 * shape.batch * shape.tokens), rows(2 * shape.batch * (shape.tokens + kKeyFill)), groups(shape.batch) {
    const auto* holes = static_cast<const bool*>(hole.const_data_ptr());
    const auto* queries = static_cast<const T*>(query.const_data_ptr());
    const auto* keys = static_cast<const T*>(key.const_data_ptr());
    const auto* values = static_cast<const T*>(value.const_data_ptr());
    const int64_t n = shape.tokens;
    torch::stable::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        Group<T, S>& group = groups[b];
        group = {};
        int64_t *query_index = index.data() + 2 * b * n, *key_index = query_index + n;
        const T** key_rows = rows.data() + 2 * b * (n + kKeyFill);
        const T** value_rows = key_rows + n + kKeyFill;
        for (int64_t i = 0; i < n; ++i) {
          const bool corrupted = holes[b * n + i];
          if (corrupted) query_index[group.queries++] = i;
          if (!corrupted || all_keys) {
            key_rows[group.keys] = keys + (b * n + i) * shape.channels;
            value_rows[group.keys] = values + (b * n + i) * shape.values;
            key_index[group.keys++] = i;
          }
        }
        if (group.keys == 0 || group.queries == 0) group.queries = group.keys = 0;
        for (int64_t j = group.keys; group.keys != 0 && j < group.keys + kKeyFill; ++j) {
          key_rows[j] = key_rows[0];
          value_rows[j] = value_rows[0];
        }
        group.channels = shape.channels;
        group.values = shape.values;
        group.temperature = temperature;
        group.query = queries + b * n * shape.channels;
        group.key_rows = key_rows;
        group.value_rows = value_rows;
        group.query_index = query_index;
        group.key_index = key_index;
      }
    });
  }
};

// Call run(T(), temperature), T being the dtype of the tensor and the temperature one of its sums.
template <typename Run>
void in_type_of_sums(const Tensor& tensor, const std::optional<Tensor>& temperature, double scale, const Run& run) {
  if (tensor.scalar_type() == ScalarType::BFloat16 && has_bf16()) {
    return run(BFloat16(), static_cast<float>(temperature_of(temperature, scale)));
  }
  in_type_of("masked_correlation", tensor, temperature, scale, [&](auto tau) { run(tau, tau); });
}

std::tuple<Tensor, Tensor> masked_correlation(const Tensor& query, const Tensor& key, const Tensor& value,
                                              const Tensor& hole, const std::optional<Tensor>& temperature,
                                              double scale, bool all_keys, bool) {
  const CorrelationShape shape = check_correlation("masked_correlation", query, key, value, hole, temperature);
  Tensor out = zeros(value, {shape.batch, shape.tokens, shape.values});
  Tensor lse = zeros(value, {shape.batch, shape.tokens}, type_of_sums(value.scalar_type()));
  const Tensor q = as_contiguous(query), k = as_contiguous(key), v = as_contiguous(value), h = as_contiguous(hole);
  in_type_of_sums(query, temperature, scale, [&]<typename T, typename S>(T, S tau) {
    Images<T, S> images(shape, q, k, v, h, tau, all_keys);
    for (int64_t b = 0; b < shape.batch; ++b) {
      images.groups[b].out = data<T>(out) + b * shape.tokens * shape.values;
      images.groups[b].lse = data<S>(lse) + b * shape.tokens;
    }
    attend(images.groups);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_correlation_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hole,
    const Tensor& out, const Tensor& lse, const std::optional<Tensor>& temperature, double scale, bool all_keys, bool) {
  constexpr const char* op = "masked_correlation_backward";
  const CorrelationShape shape = check_correlation(op, query, key, value, hole, temperature);
  check_correlation_results(op, shape, query, grad, out, lse);
  Tensor grad_query = zeros(query, {shape.batch, shape.tokens, shape.channels});
  Tensor grad_key = zeros(key, {shape.batch, shape.tokens, shape.channels});
  Tensor grad_value = zeros(value, {shape.batch, shape.tokens, shape.values});
  Tensor grad_temperature = zeros(query, {}, type_of_sums(query.scalar_type()));
  const Tensor q = as_contiguous(query), k = as_contiguous(key), v = as_contiguous(value), h = as_contiguous(hole);
  const Tensor g = as_contiguous(grad), o = as_contiguous(out), l = as_contiguous(lse);
  in_type_of_sums(query, temperature, scale, [&]<typename T, typename S>(T, S tau) {
    Images<T, S> images(shape, q, k, v, h, tau, all_keys);
    for (int64_t b = 0; b < shape.batch; ++b) {
      Group<T, S>& group = images.groups[b];
      const int64_t keys = b * shape.tokens * shape.channels, values = b * shape.tokens * shape.values;
      group.grad = data<T>(g) + values;
      group.out = data<T>(o) + values;
      group.lse = data<S>(l) + b * shape.tokens;
      group.grad_query = data<T>(grad_query) + keys;
      group.grad_key = data<T>(grad_key) + keys;
      group.grad_value = data<T>(grad_value) + values;
    }
    *data<S>(grad_temperature) = static_cast<S>(attend_backward(images.groups));
  });
  return {grad_query, grad_key, grad_value, grad_temperature};
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(SHOWFACE_LIBRARY, CPU, m) {
  m.impl("masked_correlation", TORCH_BOX(&showface::masked_correlation));
  m.impl("masked_correlation_backward", TORCH_BOX(&showface::masked_correlation_backward));
}
