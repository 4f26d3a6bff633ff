// masked_correlation on CUDA: within each image, the corrupted tokens attend to the known tokens, or to all of them.
#include <climits>
#include <tuple>

#include "../common/library.h"
#include "../common/masked_correlation.h"
#include "attention.h"

namespace showface {
namespace {

constexpr int kListThreads = 256;

struct ListShared {
  int of_warp[kListThreads / 32];
};

// Writes order (B * N), for each image its corrupted tokens and then its known tokens; and bounds (2 B + 1), the start
// of each of these lists in `order`, and the end of the last one. One block per image.
__global__ void __launch_bounds__(kListThreads)
    list_tokens_kernel(const bool* __restrict__ hole, int* __restrict__ order, int* __restrict__ bounds, int tokens) {
  const int image = static_cast<int>(blockIdx.x), first = image * tokens;
  int* const of_warp = shared_memory<ListShared>().of_warp;
  const int corrupted = list_corrupted_first(hole + first, first, tokens, of_warp, order + first);
  if (threadIdx.x == 0) {
    bounds[2 * image] = first;
    bounds[2 * image + 1] = first + corrupted;
    if (blockIdx.x == gridDim.x - 1) bounds[2 * image + 2] = first + tokens;
  }
}

// The token lists of a call, and the arguments of the attention kernels.
struct Call {
  Tensor order, bounds;
  Attention attention;

  Call(const char* op, const CorrelationShape& shape, const Tensor& query, const Tensor& key, const Tensor& value,
       const Tensor& hole, const std::optional<Tensor>& temperature, double scale, bool all_keys, bool tf32,
       const LaunchGuard& guard)
      : order(empty(query, {shape.batch * shape.tokens}, ScalarType::Int)),
        bounds(empty(query, {2 * shape.batch + 1}, ScalarType::Int)) {
    const int64_t rows = shape.batch * shape.tokens;
    STD_TORCH_CHECK(rows < INT_MAX / 2 && shape.batch < INT_MAX / 8, op,
                    " on CUDA takes up to 2**30 tokens, and 2**28 images");
    const int tokens = static_cast<int>(shape.tokens), batch = static_cast<int>(shape.batch);
    const Tensor holes = as_contiguous(hole);
    launch(op, list_tokens_kernel, dim3(batch), kListThreads, 0, guard.stream(), numbers<bool>(holes),
           numbers_to_fill<int>(order), numbers_to_fill<int>(bounds), tokens);
    const Groups groups{
        numbers<int>(order), numbers<int>(bounds), nullptr, false, tokens, batch, 2 * batch, 2, !all_keys, tokens};
    attention = {op,
                 as_contiguous(query),
                 as_contiguous(key),
                 as_contiguous(value),
                 rows,
                 rows,
                 shape.channels,
                 shape.values,
                 groups,
                 shape.tokens,
                 shape.tokens,
                 temperature,
                 scale,
                 tf32,
                 guard.stream(),
                 guard.multiprocessors(),
                 guard.shared_bytes()};
  }
};

std::tuple<Tensor, Tensor> masked_correlation(const Tensor& query, const Tensor& key, const Tensor& value,
                                              const Tensor& hole, const std::optional<Tensor>& temperature,
                                              double scale, bool all_keys, bool tf32) {
  constexpr const char* op = "masked_correlation";
  const CorrelationShape shape = check_correlation(op, query, key, value, hole, temperature);
  const LaunchGuard guard(query.get_device_index());
  Tensor out = empty(query, {shape.batch, shape.tokens, shape.values});
  Tensor lse = empty(query, {shape.batch, shape.tokens}, type_of_sums(query.scalar_type()));
  if (shape.batch * shape.tokens == 0) return {out, lse};
  const Call call(op, shape, query, key, value, hole, temperature, scale, all_keys, tf32, guard);
  attention_forward(call.attention, &out, lse);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_correlation_backward(const Tensor& grad, const Tensor& query,
                                                                       const Tensor& key, const Tensor& value,
                                                                       const Tensor& hole, const Tensor& out,
                                                                       const Tensor& lse,
                                                                       const std::optional<Tensor>& temperature,
                                                                       double scale, bool all_keys, bool tf32) {
  constexpr const char* op = "masked_correlation_backward";
  const CorrelationShape shape = check_correlation(op, query, key, value, hole, temperature);
  check_correlation_results(op, shape, query, grad, out, lse);
  const LaunchGuard guard(query.get_device_index());
  const auto like = [&](const Tensor& x) { return empty(query, {x.size(0), x.size(1), x.size(2)}); };
  Tensor grad_query = like(query), grad_key = like(key), grad_value = like(value);
  if (shape.batch * shape.tokens == 0) {
    return {grad_query, grad_key, grad_value, empty(query, {0}, lse.scalar_type())};
  }
  const Call call(op, shape, query, key, value, hole, temperature, scale, all_keys, tf32, guard);
  Tensor grad_temperature = attention_backward(call.attention, as_contiguous(grad), as_contiguous(out),
                                               as_contiguous(lse), grad_query, grad_key, &grad_value);
  return {grad_query, grad_key, grad_value, grad_temperature};
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(SHOWFACE_LIBRARY, SHOWFACE_CUDA_KEY, m) {
  m.impl("masked_correlation", TORCH_BOX(&showface::masked_correlation));
  m.impl("masked_correlation_backward", TORCH_BOX(&showface::masked_correlation_backward));
}
