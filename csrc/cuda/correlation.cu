// masked_correlation on CUDA: sizes and launches of the kernels in correlation_kernels.cuh.
#include <torch/csrc/stable/library.h>

#include <climits>
#include <tuple>

#include "correlation_kernels.cuh"
#include "launch.h"

namespace showface {
namespace {

// Tile sizes: warps of 16 rows, and tiles of 8 columns. Wide vectors leave room for fewer in shared memory, of which
// every chip from sm_80 on gives a block this much.
constexpr size_t kMaxShared = 163 << 10;

template <typename T, typename A>
size_t forward_shared(const CorrelationShape& shape, int warps, int tiles) {
  const size_t rows = 16 * warps, columns = 8 * tiles, depth = round_up(shape.channels, 16) + kPad;
  return sizeof(T) * ((rows + columns) * depth + columns * (kValueTiles * 8 + kPad) + rows * (columns + kPad)) +
         sizeof(int) * (rows + columns) + 128;
}

template <typename T, typename A>
size_t backward_shared(const CorrelationShape& shape, int warps, int tiles) {
  const size_t rows = 16 * warps, columns = 8 * tiles, part = kGradTiles * 8;
  const size_t width = round_up(round_up(shape.channels, 16), part) + round_up(round_up(shape.values, 16), part) + 2 * kPad;
  return sizeof(T) * ((rows + columns) * width + 2 * rows * (columns + kPad)) + sizeof(A) * (4 * rows + 2 * columns) +
         sizeof(int) * (rows + columns) + 256;
}

unsigned blocks_of(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

// The tensors of a call, the lists of tokens, and where to launch.
struct Call {
  CorrelationShape shape;
  Tensor query, key, value, hole, order, count;
  std::optional<Tensor> temperature;
  double scale;
  bool all_keys;
  cudaStream_t stream;

  Call(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hole,
       const std::optional<Tensor>& temperature, double scale, bool all_keys, cudaStream_t stream)
      : shape(check_correlation(query, key, value, hole, temperature)), query(as_contiguous(query)),
        key(as_contiguous(key)), value(as_contiguous(value)), hole(as_contiguous(hole)), temperature(temperature),
        scale(scale), all_keys(all_keys), stream(stream) {
    STD_TORCH_CHECK(is_floating(query.scalar_type()), "masked_correlation takes float16, bfloat16, float32 and float64");
    STD_TORCH_CHECK(shape.tokens < INT_MAX / 2 && shape.batch <= 65535,
                    "masked_correlation on CUDA takes up to 2**30 tokens and 65,535 images");
    order = torch::stable::empty({shape.batch, shape.tokens}, ScalarType::Int, std::nullopt, query.device());
    count = torch::stable::empty({shape.batch}, ScalarType::Int, std::nullopt, query.device());
  }

  void list_tokens() const {
    launch("masked_correlation", list_tokens_kernel, dim3(static_cast<unsigned>(shape.batch)), kListThreads, 0, stream,
           static_cast<const bool*>(hole.const_data_ptr()), static_cast<int*>(order.mutable_data_ptr()),
           static_cast<int*>(count.mutable_data_ptr()), static_cast<int>(shape.tokens));
  }

  template <typename T, typename A>
  Problem<T, A> problem(bool more_aligned = true) const {
    const auto rows_aligned = [](const Tensor& x) {
      return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(2) * sizeof(T) % 16 == 0;
    };
    return {static_cast<const T*>(query.const_data_ptr()),
            static_cast<const T*>(key.const_data_ptr()),
            static_cast<const T*>(value.const_data_ptr()),
            static_cast<const int*>(order.const_data_ptr()),
            static_cast<const int*>(count.const_data_ptr()),
            temperature.has_value() ? temperature->const_data_ptr() : nullptr,
            temperature.has_value() ? temperature->scalar_type() : ScalarType::Float,
            static_cast<A>(scale),
            static_cast<int>(shape.tokens),
            static_cast<int>(shape.channels),
            static_cast<int>(shape.values),
            all_keys,
            more_aligned && rows_aligned(query) && rows_aligned(key) && rows_aligned(value)};
  }
};

void check_shared(size_t bytes) {
  STD_TORCH_CHECK(bytes <= kMaxShared, "masked_correlation: vectors as wide as these don't fit into shared memory");
}

template <typename T, typename A, bool TensorCores, int Warps, int KeyTiles>
void forward(const Call& call, Tensor& out, Tensor& log_sum) {
  const size_t bytes = forward_shared<T, A>(call.shape, Warps, KeyTiles);
  check_shared(bytes);
  const dim3 grid(blocks_of(call.shape.tokens, 16 * Warps), static_cast<unsigned>(call.shape.batch),
                  std::max(1u, blocks_of(call.shape.values, kValueTiles * 8)));
  // Weights in float16 need their largest to be near 1: they have no small exponents.
  const A high = std::is_same_v<T, c10::Half> ? 2 : 40;
  launch("masked_correlation", forward_kernel<T, A, TensorCores, Warps, KeyTiles>, grid, Warps * 32, bytes, call.stream,
         call.problem<T, A>(), high, static_cast<T*>(out.mutable_data_ptr()), static_cast<A*>(log_sum.mutable_data_ptr()));
}

struct Gradients {
  Tensor query, key, value, along, temperature;
};

template <typename T, typename A, bool TensorCores, int Warps, int Tiles>
void backward(const Call& call, const Tensor& grad, const Tensor& out, const Tensor& log_sum, Gradients& to) {
  const CorrelationShape& shape = call.shape;
  const size_t bytes = backward_shared<T, A>(shape, Warps, Tiles);
  check_shared(bytes);
  to.temperature = torch::stable::empty({shape.batch, blocks_of(shape.tokens, 16 * Warps)}, log_sum.scalar_type(),
                                        std::nullopt, log_sum.device());
  const auto problem = call.problem<T, A>(reinterpret_cast<uintptr_t>(grad.const_data_ptr()) % 16 == 0);
  const auto run = [&](auto kernel, int64_t width, const Tensor& grad_row) {
    const dim3 grid(blocks_of(shape.tokens, 16 * Warps), static_cast<unsigned>(shape.batch),
                    blocks_of(width, kGradTiles * 8));
    launch("masked_correlation_backward", kernel, grid, Warps * 32, bytes, call.stream, problem,
           static_cast<const T*>(grad.const_data_ptr()), static_cast<const T*>(out.const_data_ptr()),
           static_cast<const A*>(log_sum.const_data_ptr()), static_cast<A*>(to.along.mutable_data_ptr()),
           static_cast<T*>(grad_row.mutable_data_ptr()), static_cast<T*>(to.value.mutable_data_ptr()),
           static_cast<A*>(to.temperature.mutable_data_ptr()));
  };
  run(backward_kernel<T, A, TensorCores, false, Warps, Tiles>, shape.channels, to.query);
  run(backward_kernel<T, A, TensorCores, true, Warps, Tiles>, std::max(shape.channels, shape.values), to.key);
}

std::tuple<Tensor, Tensor> masked_correlation(const Tensor& query, const Tensor& key, const Tensor& value,
                                              const Tensor& hole, const std::optional<Tensor>& temperature,
                                              double scale, bool all_keys, bool tf32) {
  const LaunchGuard guard(query.get_device_index());
  const Call call(query, key, value, hole, temperature, scale, all_keys, guard.stream());
  const CorrelationShape& shape = call.shape;
  const ScalarType type = query.scalar_type(), sums = type == ScalarType::Double ? type : ScalarType::Float;
  Tensor out = torch::stable::empty({shape.batch, shape.tokens, shape.values}, type, std::nullopt, query.device());
  Tensor log_sum = torch::stable::empty({shape.batch, shape.tokens}, sums, std::nullopt, query.device());
  if (shape.batch * shape.tokens == 0) return {out, log_sum};
  call.list_tokens();
  switch (type) {
    case ScalarType::Half: forward<c10::Half, float, true, 4, 4>(call, out, log_sum); break;
    case ScalarType::BFloat16: forward<c10::BFloat16, float, true, 4, 4>(call, out, log_sum); break;
    case ScalarType::Double: forward<double, double, false, 1, 2>(call, out, log_sum); break;
    default:
      tf32 ? forward<float, float, true, 2, 2>(call, out, log_sum) : forward<float, float, false, 2, 2>(call, out, log_sum);
  }
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_correlation_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hole,
    const Tensor& out, const Tensor& log_sum, const std::optional<Tensor>& temperature, double scale, bool all_keys,
    bool tf32) {
  const LaunchGuard guard(query.get_device_index());
  const Call call(query, key, value, hole, temperature, scale, all_keys, guard.stream());
  const CorrelationShape& shape = call.shape;
  const ScalarType type = query.scalar_type();
  for (const Tensor* tensor : {&grad, &out, &log_sum}) {
    STD_TORCH_CHECK(tensor->size(0) == shape.batch && tensor->size(1) == shape.tokens && tensor->device() == query.device(),
                    "masked_correlation_backward: grad, out and log_sum must go with query");
  }
  const auto like = [](const Tensor& x, ScalarType dtype) {
    return torch::stable::empty({x.size(0), x.size(1), x.size(2)}, dtype, std::nullopt, x.device());
  };
  Gradients to{like(query, type), like(key, type), like(value, type),
               torch::stable::empty({shape.batch, shape.tokens}, log_sum.scalar_type(), std::nullopt, query.device()),
               torch::stable::empty({0}, log_sum.scalar_type(), std::nullopt, query.device())};
  if (shape.batch * shape.tokens == 0) return {to.query, to.key, to.value, to.temperature};
  const Tensor g = as_contiguous(grad), o = as_contiguous(out), l = as_contiguous(log_sum);
  call.list_tokens();
  const auto fits = [](size_t bytes) { return bytes <= kMaxShared; };
  const auto run_half = [&]<typename T>(T) {
    fits(backward_shared<T, float>(shape, 4, 4)) ? backward<T, float, true, 4, 4>(call, g, o, l, to)
                                                 : backward<T, float, true, 2, 2>(call, g, o, l, to);
  };
  const auto run_single = [&]<bool TensorCores>(std::bool_constant<TensorCores>) {
    fits(backward_shared<float, float>(shape, 2, 2)) ? backward<float, float, TensorCores, 2, 2>(call, g, o, l, to)
                                                     : backward<float, float, TensorCores, 1, 2>(call, g, o, l, to);
  };
  switch (type) {
    case ScalarType::Half: run_half(c10::Half()); break;
    case ScalarType::BFloat16: run_half(c10::BFloat16()); break;
    case ScalarType::Double: backward<double, double, false, 1, 2>(call, g, o, l, to); break;
    default: tf32 ? run_single(std::true_type()) : run_single(std::false_type());
  }
  return {to.query, to.key, to.value, to.temperature};
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(showface_C, SHOWFACE_CUDA_KEY, m) {
  m.impl("masked_correlation", TORCH_BOX(&showface::masked_correlation));
  m.impl("masked_correlation_backward", TORCH_BOX(&showface::masked_correlation_backward));
}
