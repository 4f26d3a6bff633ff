// Attention within groups on CUDA: sizes and launches of the kernels in attention_{forward,backward,combine}.cuh.
#include "attention.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <tuple>

#include "attention_forward.cuh"
#include "attention_combine.cuh"
#include "attention_backward.cuh"

namespace showface {
namespace {

template <typename T>
constexpr int kColumnTiles = sizeof(T) == 2 ? 4 : 2;  // 8-column tiles per step.

// What the size of a block's shared memory depends on, besides its tile.
struct Widths {
  int64_t channels, values;
  int64_t sort_ints;  // Of shared memory, if a block sorts the tokens itself; otherwise 0.
};

Widths widths_of(const Attention& call) {
  const Groups& groups = call.groups;
  return {call.channels, call.values, groups.unsorted ? sort_ints(groups.tokens, groups.count, kThreads / 32) : 0};
}

template <typename T, typename A>
size_t forward_bytes(const Widths& width, size_t rows, size_t columns, size_t stages) {
  const size_t stride = row_stride<T>(width.channels);
  const size_t value_stride = row_stride<T>(std::min<int64_t>(width.values, kValueTiles<A> * 8));
  return sizeof(T) * (rows * (stride + row_stride<T>(columns)) + stages * columns * (stride + value_stride)) +
         sizeof(int) * (rows + 2 * columns + width.sort_ints) + 256;
}

template <typename T, typename A, Role role>
size_t backward_bytes(const Widths& width, size_t rows, size_t columns, size_t stages) {
  const bool accumulate = role == Role::accumulate;
  const size_t stride = row_stride<T>(width.channels);
  const size_t value_stride =
      row_stride<T>(accumulate ? std::min<int64_t>(width.values, kGradTiles<A, role> * 8) : width.values);
  return sizeof(T) * (rows * (stride + (accumulate ? 0 : value_stride) + 2 * row_stride<T>(columns)) +
                      stages * columns * (stride + value_stride)) +
         sizeof(A) * (4 * rows + 4 * columns) + sizeof(int) * (rows + 2 * columns + width.sort_ints) + 256;
}

// Shared memory of a block: the rows of its tile, and how many column tiles it holds at once.
struct Tile {
  int rows, stages;
  size_t bytes;

  // Take as many rows as an expected group has and as fit. Hold two column tiles if they fit, to load one while the
  // other is multiplied. Hold only one if two would leave no room for a second block on the multiprocessor, since a
  // second block hides the latency just as well.
  template <typename Bytes>
  Tile(const Attention& call, int64_t rows_per_group, Bytes bytes_of) : rows(kMaxRows) {
    const size_t most = call.shared_bytes;
    while (rows > kMinRows && (rows / 2 >= rows_per_group || bytes_of(rows, 1) > most)) rows /= 2;
    const size_t one = bytes_of(rows, 1), two = bytes_of(rows, 2);
    stages = two <= most / 2 || (one > most / 2 && two <= most) ? 2 : 1;
    bytes = stages == 2 ? two : one;
    STD_TORCH_CHECK(bytes <= most, call.op, ": keys of ", call.channels, " and values of ", call.values,
                    " numbers need ", bytes, " bytes of shared memory, and this device has ", most);
  }
};

// Number of splits of the columns. Aims at two blocks per multiprocessor, and gives each split at least four tiles.
int splits_of(const Attention& call, int64_t blocks, int64_t columns, int tile_columns) {
  const int64_t wanted = 2 * call.multiprocessors / std::max<int64_t>(blocks, 1);
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(wanted, columns / tile_columns / 4), 1, kMaxSplits));
}

// Upper bound on the number of tiles of `rows` queries. No tile crosses a segment boundary.
unsigned tiles_of_queries(const Attention& call, int rows) {
  return static_cast<unsigned>(call.queries / rows + call.groups.segments);
}
unsigned tiles_of_keys(const Attention& call, int rows) {
  if (call.groups.listed_keys) return tiles_of_queries(call, rows);
  return static_cast<unsigned>(call.groups.count) * blocks_of(call.groups.key_rows, rows);
}

template <typename T, typename A>
Problem<T, A> problem_of(const Attention& call, const Tensor* more = nullptr) {
  const auto aligned = [](const Tensor& x, int64_t width) {
    return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && width * sizeof(T) % 16 == 0;
  };
  return {numbers<T>(call.query),
          numbers<T>(call.key),
          numbers<T>(call.value),
          call.groups,
          call.temperature.has_value() ? call.temperature->const_data_ptr() : nullptr,
          call.temperature.has_value() ? call.temperature->scalar_type() : ScalarType::Float,
          static_cast<A>(call.scale),
          static_cast<int>(call.queries),
          static_cast<int>(call.keys),
          static_cast<int>(call.channels),
          static_cast<int>(call.values),
          aligned(call.query, call.channels) && aligned(call.key, call.channels) && aligned(call.value, call.values) &&
              (more == nullptr || aligned(*more, call.values))};
}

template <typename T, typename A, bool TensorCores>
void forward(const Attention& call, Tensor* out, Tensor& lse) {
  constexpr int columns = 8 * kColumnTiles<T>;
  const Tile tile(call, call.queries_per_group,
                  [&](int rows, int stages) { return forward_bytes<T, A>(widths_of(call), rows, columns, stages); });
  const unsigned parts = std::max(1u, blocks_of(call.values, kValueTiles<A> * 8));
  const int64_t busy = blocks_of(call.queries_per_group, tile.rows) * call.groups.count * parts;
  const int splits = splits_of(call, busy, call.keys_per_group, columns);
  T* const out_data = out != nullptr ? numbers_to_fill<T>(*out) : nullptr;
  // float16 has few small exponents, so the largest weight of a row must be near 1: use the row maximum early.
  const A high = std::is_same_v<T, c10::Half> ? 2 : 40;
  const auto run = [&](A* partial_lse, A* partial) {
    launch(call.op, forward_kernel<T, A, TensorCores, kColumnTiles<T>>,
           dim3(tiles_of_queries(call, tile.rows), parts, splits), kThreads, tile.bytes, call.stream,
           problem_of<T, A>(call), high, tile.rows, tile.stages, out_data, partial_lse, partial);
  };
  if (splits == 1) return run(numbers_to_fill<A>(lse), nullptr);
  Tensor partial = empty(lse, {splits, call.queries, call.values + 1});
  A* const partial_lse = numbers_to_fill<A>(partial) + splits * call.queries * call.values;
  run(partial_lse, numbers_to_fill<A>(partial));
  launch(call.op, combine_kernel<T, A>, dim3(blocks_of(call.queries, kThreads / 32)), kThreads, 0, call.stream,
         numbers<A>(partial), partial_lse, splits, static_cast<int>(call.queries), static_cast<int>(call.values),
         out_data, numbers_to_fill<A>(lse));
}

template <typename T, typename A>
void launch_blend(const char* op, const T* key, const A* sum, const A* weight, int splits, int64_t size, A log_keep,
                  int64_t keys, int64_t channels, T* blended, T* mass, cudaStream_t stream) {
  launch(op, blend_kernel<T, A>, dim3(blocks_of(keys, kThreads / 32)), kThreads, 0, stream, key, sum, weight, splits,
         size, log_keep, keys, static_cast<int>(channels), blended, mass);
}

// Launch the backward kernel in one role, and sum its partial results. Returns partial sums of the gradient of the
// temperature.
template <typename T, typename A, bool TensorCores, Role role>
Tensor run_backward(const Attention& call, BackwardArguments<T, A, role> arguments, const Tensor& lse,
                    const Tensor* grad = nullptr) {
  constexpr bool keys = role != Role::query;
  constexpr int columns = 8 * kColumnTiles<T>;
  const int64_t rows_per_group = keys ? call.keys_per_group : call.queries_per_group;
  const Tile tile(call, rows_per_group, [&](int rows, int stages) {
    return backward_bytes<T, A, role>(widths_of(call), rows, columns, stages);
  });
  const unsigned tiles = keys ? tiles_of_keys(call, tile.rows) : tiles_of_queries(call, tile.rows);
  const int64_t width = role == Role::key ? std::max(call.channels, call.values) : call.channels;
  const unsigned parts = std::max(1u, blocks_of(width, 8 * kGradTiles<A, role>));
  const int64_t busy = blocks_of(rows_per_group, tile.rows) * call.groups.count * parts;
  const int splits = splits_of(call, busy, keys ? call.queries_per_group : call.keys_per_group, columns);
  Tensor grad_temperature = empty(lse, {keys ? 0 : splits, tiles});
  Tensor partial = empty(lse, {splits > 1 ? splits : 0, arguments.size});
  if (!keys) arguments.temperature = numbers_to_fill<A>(grad_temperature);
  if (splits > 1) arguments.partial = numbers_to_fill<A>(partial);
  if (tiles == 0) return grad_temperature;
  launch(call.op, backward_kernel<T, A, TensorCores, role, kColumnTiles<T>>, dim3(tiles, parts, splits), kThreads,
         tile.bytes, call.stream, problem_of<T, A>(call, grad), arguments, tile.rows, tile.stages);
  if (splits > 1 && arguments.blended != nullptr) {
    launch_blend(call.op, numbers<T>(call.key), arguments.partial, arguments.partial + arguments.first_size, splits,
                 arguments.size, arguments.log_keep, call.keys, call.channels, arguments.blended, arguments.second,
                 call.stream);
  } else if (splits > 1 && arguments.size > 0) {
    launch(call.op, add_partials_kernel<T, A>, dim3(blocks_of(arguments.size, kThreads)), kThreads, 0, call.stream,
           arguments.partial, splits, arguments.size, arguments.first_size, arguments.first, arguments.second);
  }
  return grad_temperature;
}

template <typename T, typename A, bool TensorCores>
Tensor backward(const Attention& call, const Tensor& grad, const Tensor& out, const Tensor& lse, Tensor& grad_query,
                Tensor& grad_key, Tensor* grad_value) {
  Tensor delta = empty(lse, {call.queries});
  BackwardArguments<T, A, Role::query> of_query{numbers<T>(grad), numbers<T>(out), numbers<A>(lse),
                                                numbers_to_fill<A>(delta)};
  of_query.first = numbers_to_fill<T>(grad_query);
  of_query.first_size = of_query.size = call.queries * call.channels;
  BackwardArguments<T, A, Role::key> of_key{of_query.grad, of_query.out, of_query.lse, of_query.delta};
  of_key.first = numbers_to_fill<T>(grad_key);
  of_key.first_size = of_key.size = call.keys * call.channels;
  of_key.tied = grad_value == nullptr;
  if (grad_value != nullptr) {
    of_key.second = numbers_to_fill<T>(*grad_value);
    of_key.size += call.keys * call.values;
  }
  Tensor grad_temperature = run_backward<T, A, TensorCores, Role::query>(call, of_query, lse, &grad);
  run_backward<T, A, TensorCores, Role::key>(call, of_key, lse, &grad);
  return grad_temperature;
}

// Computes total, or blended if it is not null. total is unused then.
template <typename T, typename A, bool TensorCores>
void accumulate(const Attention& call, const Tensor& lse, Tensor* total, Tensor* blended, double log_keep,
                Tensor& mass) {
  BackwardArguments<T, A, Role::accumulate> arguments{};
  arguments.lse = numbers<A>(lse);
  arguments.second = numbers_to_fill<T>(mass);
  arguments.first_size = call.keys * call.channels;
  arguments.size = arguments.first_size + call.keys;
  if (blended != nullptr) {
    arguments.blended = numbers_to_fill<T>(*blended);
    arguments.log_keep = static_cast<A>(log_keep);
  } else {
    arguments.first = numbers_to_fill<T>(*total);
  }
  run_backward<T, A, TensorCores, Role::accumulate>(call, arguments, lse);
}

void accumulate_in_type(const Attention& call, const Tensor& lse, Tensor* total, Tensor* blended, double log_keep,
                        Tensor& mass) {
  const auto run = [&](auto function) { return function(call, lse, total, blended, log_keep, mass); };
  switch (call.query.scalar_type()) {
    case ScalarType::Double: return run(accumulate<double, double, false>);
    case ScalarType::Float:
      return call.tf32 ? run(accumulate<float, float, true>) : run(accumulate<float, float, false>);
    default:
      STD_TORCH_CHECK(false, call.op,
                      " takes float32 and float64, because half precision is too coarse for these sums");
  }
}

void check(const Attention& call) {
  STD_TORCH_CHECK(is_floating(call.query.scalar_type()), call.op, " takes float16, bfloat16, float32 and float64");
}

// Bytes of shared memory of the smallest tile. With `sums` for attention_accumulate and attention_write.
template <typename T, typename A>
size_t smallest_bytes(const Widths& width, bool sums) {
  constexpr int columns = 8 * kColumnTiles<T>;
  if (sums) {
    return std::max(forward_bytes<T, A>({width.channels, 0, width.sort_ints}, kMinRows, columns, 1),
                    backward_bytes<T, A, Role::accumulate>(width, kMinRows, columns, 1));
  }
  return std::max({forward_bytes<T, A>(width, kMinRows, columns, 1),
                   backward_bytes<T, A, Role::query>(width, kMinRows, columns, 1),
                   backward_bytes<T, A, Role::key>(width, kMinRows, columns, 1)});
}

// Compiled for the same GPUs as every kernel of this library.
__global__ void nothing() {}

std::tuple<int64_t, int64_t> shared_bytes(const Tensor& like, int64_t channels, int64_t values, bool memory,
                                          bool sums) {
  // Of the largest sort within a block. Calls with more tokens need less.
  const Widths width{channels, values, memory ? sort_ints(kSelfSorted, kSelfSortedRegions, kThreads / 32) : 0};
  const LaunchGuard guard(like.get_device_index());
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, nothing);
  static_cast<void>(cudaGetLastError());  // otherwise torch's next check would find this error
  check_cuda(error, "CUDA");
  const int64_t has = static_cast<int64_t>(guard.shared_bytes());
  switch (like.scalar_type()) {
    case ScalarType::Half:
    case ScalarType::BFloat16: return {smallest_bytes<c10::Half, float>(width, sums), has};
    case ScalarType::Double: return {smallest_bytes<double, double>(width, sums), has};
    default: return {smallest_bytes<float, float>(width, sums), has};
  }
}

}  // namespace

void attention_forward(const Attention& call, Tensor* out, Tensor& lse) {
  check(call);
  if (call.queries == 0) return;
  const auto run = [&](auto function) { return function(call, out, lse); };
  switch (call.query.scalar_type()) {
    case ScalarType::Half: return run(forward<c10::Half, float, true>);
    case ScalarType::BFloat16: return run(forward<c10::BFloat16, float, true>);
    case ScalarType::Double: return run(forward<double, double, false>);
    default: return call.tf32 ? run(forward<float, float, true>) : run(forward<float, float, false>);
  }
}

Tensor attention_backward(const Attention& call, const Tensor& grad, const Tensor& out, const Tensor& lse,
                          Tensor& grad_query, Tensor& grad_key, Tensor* grad_value) {
  check(call);
  const auto run = [&](auto function) { return function(call, grad, out, lse, grad_query, grad_key, grad_value); };
  switch (call.query.scalar_type()) {
    case ScalarType::Half: return run(backward<c10::Half, float, true>);
    case ScalarType::BFloat16: return run(backward<c10::BFloat16, float, true>);
    case ScalarType::Double: return run(backward<double, double, false>);
    default: return call.tf32 ? run(backward<float, float, true>) : run(backward<float, float, false>);
  }
}

void attention_accumulate(const Attention& call, const Tensor& lse, Tensor& total, Tensor& mass) {
  check(call);
  accumulate_in_type(call, lse, &total, nullptr, 0, mass);
}

void attention_write(const Attention& call, const Tensor& lse, double rate, Tensor& blended, Tensor& mass) {
  check(call);
  accumulate_in_type(call, lse, nullptr, &blended, std::log1p(-rate), mass);
}

void blend_keys(const char* op, const Tensor& key, const Tensor& total, const Tensor& mass, double rate,
                Tensor& blended, cudaStream_t stream) {
  const int64_t keys = mass.numel(), channels = keys > 0 ? key.numel() / keys : 0;
  if (key.numel() == 0) return;
  const auto run = [&]<typename T, typename A>(T, A log_keep) {
    launch_blend(op, numbers<T>(key), numbers<A>(total), numbers<A>(mass), 1, 0, log_keep, keys, channels,
                 numbers_to_fill<T>(blended), static_cast<T*>(nullptr), stream);
  };
  const double log_keep = std::log1p(-rate);
  switch (key.scalar_type()) {
    case ScalarType::Half: return run(c10::Half(), static_cast<float>(log_keep));
    case ScalarType::BFloat16: return run(c10::BFloat16(), static_cast<float>(log_keep));
    case ScalarType::Double: return run(0., log_keep);
    default: return run(0.f, static_cast<float>(log_keep));
  }
}

}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(SHOWFACE_LIBRARY, SHOWFACE_CUDA_KEY, m) {
  m.impl("shared_bytes", TORCH_BOX(&showface::shared_bytes));
}
