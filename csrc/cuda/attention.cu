// Attention within groups on CUDA: sizes and launches of the kernels in attention_*.cuh.
#include "attention.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "attention_kernels.cuh"
#include "attention_shares.cuh"
#include "attention_sums.cuh"

namespace showface {
namespace {

constexpr size_t kMaxShared = 163 << 10;  // what every chip from sm_80 on gives a block, and about all that it has

size_t list_bytes(const Attention& call) {
  return call.groups.unsorted ? sizeof(int) * sort_numbers(call.groups.tokens, call.groups.count, kThreads / 32) : 0;
}

template <typename T, typename A>
size_t forward_bytes(const Attention& call, size_t rows, size_t columns, size_t stages) {
  const size_t stride = row_stride<T>(call.channels);
  const size_t value_stride = row_stride<T>(std::min<int64_t>(call.values, kValueTiles<A> * 8));
  return sizeof(T) * (rows * (stride + row_stride<T>(columns)) + stages * columns * (stride + value_stride)) +
         sizeof(int) * (rows + 2 * columns) + list_bytes(call) + 256;
}

template <typename T, typename A, Role role>
size_t sums_bytes(const Attention& call, size_t rows, size_t columns, size_t stages) {
  const bool write = role == Role::write;
  const size_t stride = row_stride<T>(call.channels);
  const size_t value_stride = row_stride<T>(write ? std::min<int64_t>(call.values, kSumTiles<A, role> * 8) : call.values);
  return sizeof(T) * (rows * (stride + (write ? 0 : value_stride) + 2 * row_stride<T>(columns)) +
                      stages * columns * (stride + value_stride)) +
         sizeof(A) * (4 * rows + 4 * columns) + sizeof(int) * (rows + 2 * columns) + list_bytes(call) + 256;
}

// How a block uses its shared memory: the rows of its tile, and how many tiles of columns are there at once.
struct Tile {
  int rows, stages;
  size_t bytes;

  // As many rows as a group is likely to have and as fit. Two tiles of columns, one loaded while the other is multiplied,
  // where they fit; but not if that takes the multiprocessor's room for a second block, which hides as much.
  template <typename Bytes>
  Tile(const Attention& call, int64_t rows_each, Bytes bytes_of) : rows(kMaxRows) {
    while (rows > 16 && (rows / 2 >= rows_each || bytes_of(rows, 1) > kMaxShared)) rows /= 2;
    const size_t one = bytes_of(rows, 1), two = bytes_of(rows, 2);
    stages = two <= kMaxShared / 2 || (one > kMaxShared / 2 && two <= kMaxShared) ? 2 : 1;
    bytes = stages == 2 ? two : one;
    STD_TORCH_CHECK(bytes <= kMaxShared, call.op, ": vectors as wide as these don't fit into shared memory");
  }
};

// Into how many parts a launch splits its columns: two blocks for each multiprocessor, if a part is worth it.
int splits_of(const Attention& call, int64_t blocks, int64_t columns, int tile_columns) {
  const int64_t wanted = 2 * call.multiprocessors / std::max<int64_t>(blocks, 1);
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(wanted, columns / tile_columns / 4), 1, kMaxSplits));
}

// Tiles of `rows` queries, segment by segment: at most so many.
unsigned tiles_of_queries(const Attention& call, int rows) {
  return static_cast<unsigned>(call.queries / rows + call.groups.segments);
}
unsigned tiles_of_keys(const Attention& call, int rows) {
  if (call.groups.keys_each == 0) return tiles_of_queries(call, rows);
  return static_cast<unsigned>(call.groups.count) * blocks_of(call.groups.keys_each, rows);
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

Tensor empty_like(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device());
}

template <typename T, typename A, bool TensorCores, int ColumnTiles>
void forward(const Attention& call, Tensor* out, Tensor& log_sum) {
  constexpr int columns = 8 * ColumnTiles;
  const Tile tile(call, call.queries_each,
                  [&](int rows, int stages) { return forward_bytes<T, A>(call, rows, columns, stages); });
  const unsigned parts = std::max(1u, blocks_of(call.values, kValueTiles<A> * 8));
  const int64_t busy = blocks_of(call.queries_each, tile.rows) * call.groups.count * parts;
  const int splits = splits_of(call, busy, call.keys_each, columns);
  T* const answers = out != nullptr ? numbers_to_fill<T>(*out) : nullptr;
  // Weights in float16 need their largest to be near 1: they have no small exponents.
  const A high = std::is_same_v<T, c10::Half> ? 2 : 40;
  const auto run = [&](A* log_sums, A* share) {
    launch(call.op, forward_kernel<T, A, TensorCores, ColumnTiles>,
           dim3(tiles_of_queries(call, tile.rows), parts, splits), kThreads, tile.bytes, call.stream,
           problem_of<T, A>(call), high, tile.rows, tile.stages, answers, log_sums, share);
  };
  if (splits == 1) return run(numbers_to_fill<A>(log_sum), nullptr);
  Tensor share = empty_like(log_sum, {splits, call.queries, call.values + 1});
  A* const log_sums = numbers_to_fill<A>(share) + splits * call.queries * call.values;
  run(log_sums, numbers_to_fill<A>(share));
  launch(call.op, merge_kernel<T, A>, dim3(blocks_of(call.queries, kThreads / 32)), kThreads, 0, call.stream,
         numbers<A>(share), log_sums, splits, static_cast<int>(call.queries), static_cast<int>(call.values), answers, numbers_to_fill<A>(log_sum));
}

template <typename T, typename A>
void launch_blend(const char* op, const T* key, const A* sum, const A* weight, int splits, int64_t size, A log_keep,
                  int64_t keys, int64_t channels, T* blended, T* mass, cudaStream_t stream) {
  launch(op, blend_kernel<T, A>, dim3(blocks_of(keys, kThreads / 32)), kThreads, 0, stream, key, sum, weight, splits,
         size, log_keep, keys, static_cast<int>(channels), blended, mass);
}

// One of the kernels that sum for each row, and what adds up its shares. Returns the shares in the temperature's gradient.
template <typename T, typename A, bool TensorCores, Role role, int ColumnTiles>
Tensor sum_rows(const Attention& call, Sums<T, A, role> sums, const Tensor& log_sum, const Tensor* grad = nullptr) {
  constexpr bool keys = role != Role::query;
  constexpr int columns = 8 * ColumnTiles;
  const int64_t rows_each = keys ? call.keys_each : call.queries_each;
  const Tile tile(call, rows_each,
                  [&](int rows, int stages) { return sums_bytes<T, A, role>(call, rows, columns, stages); });
  const unsigned tiles = keys ? tiles_of_keys(call, tile.rows) : tiles_of_queries(call, tile.rows);
  const int64_t width = role == Role::key ? std::max(call.channels, call.values) : call.channels;
  const unsigned parts = std::max(1u, blocks_of(width, 8 * kSumTiles<A, role>));
  const int64_t busy = blocks_of(rows_each, tile.rows) * call.groups.count * parts;
  const int splits = splits_of(call, busy, keys ? call.queries_each : call.keys_each, columns);
  Tensor temperature = empty_like(log_sum, {keys ? 0 : splits, tiles});
  Tensor share = empty_like(log_sum, {splits > 1 ? splits : 0, sums.size});
  if (!keys) sums.temperature = numbers_to_fill<A>(temperature);
  if (splits > 1) sums.share = numbers_to_fill<A>(share);
  if (tiles == 0) return temperature;
  launch(call.op, sums_kernel<T, A, TensorCores, role, ColumnTiles>, dim3(tiles, parts, splits), kThreads, tile.bytes,
         call.stream, problem_of<T, A>(call, grad), sums, tile.rows, tile.stages);
  if (splits > 1 && sums.blended != nullptr) {
    launch_blend(call.op, numbers<T>(call.key), sums.share, sums.share + sums.first_size, splits, sums.size,
                 sums.log_keep, call.keys, call.channels, sums.blended, sums.second, call.stream);
  } else if (splits > 1 && sums.size > 0) {
    launch(call.op, add_shares_kernel<T, A>, dim3(blocks_of(sums.size, kThreads)),
           kThreads, 0, call.stream, sums.share, splits, sums.size, sums.first_size, sums.first, sums.second);
  }
  return temperature;
}

template <typename T, typename A, bool TensorCores, int ColumnTiles>
Tensor backward(const Attention& call, const Tensor& grad, const Tensor& out, const Tensor& log_sum, Tensor& grad_query,
                Tensor& grad_key, Tensor* grad_value) {
  Tensor along = empty_like(log_sum, {call.queries});
  Sums<T, A, Role::query> of_query{numbers<T>(grad), numbers<T>(out), numbers<A>(log_sum), numbers_to_fill<A>(along)};
  of_query.first = numbers_to_fill<T>(grad_query);
  of_query.first_size = of_query.size = call.queries * call.channels;
  Sums<T, A, Role::key> of_key{of_query.grad, of_query.out, of_query.log_sum, of_query.along};
  of_key.first = numbers_to_fill<T>(grad_key);
  of_key.first_size = of_key.size = call.keys * call.channels;
  of_key.tied = grad_value == nullptr;
  if (grad_value != nullptr) {
    of_key.second = numbers_to_fill<T>(*grad_value);
    of_key.size += call.keys * call.values;
  }
  Tensor shares = sum_rows<T, A, TensorCores, Role::query, ColumnTiles>(call, of_query, log_sum, &grad);
  sum_rows<T, A, TensorCores, Role::key, ColumnTiles>(call, of_key, log_sum, &grad);
  return shares;
}

// With `blended` no total.
template <typename T, typename A, bool TensorCores, int ColumnTiles>
void write(const Attention& call, const Tensor& log_sum, Tensor* total, Tensor* blended, double log_keep, Tensor& mass) {
  Sums<T, A, Role::write> sums{};
  sums.log_sum = numbers<A>(log_sum);
  sums.second = numbers_to_fill<T>(mass);
  sums.first_size = call.keys * call.channels;
  sums.size = sums.first_size + call.keys;
  if (blended != nullptr) {
    sums.blended = numbers_to_fill<T>(*blended);
    sums.log_keep = static_cast<A>(log_keep);
  } else {
    sums.first = numbers_to_fill<T>(*total);
  }
  sum_rows<T, A, TensorCores, Role::write, ColumnTiles>(call, sums, log_sum);
}

void write_in_type(const Attention& call, const Tensor& log_sum, Tensor* total, Tensor* blended, double log_keep,
                   Tensor& mass) {
  const auto run = [&](auto function) { return function(call, log_sum, total, blended, log_keep, mass); };
  switch (call.query.scalar_type()) {
    case ScalarType::Double: return run(write<double, double, false, 2>);
    case ScalarType::Float: return call.tf32 ? run(write<float, float, true, 2>) : run(write<float, float, false, 2>);
    default: STD_TORCH_CHECK(false, call.op, " takes float32 and float64: sums that add up are not of half precision");
  }
}

void check(const Attention& call) {
  STD_TORCH_CHECK(is_floating(call.query.scalar_type()), call.op, " takes float16, bfloat16, float32 and float64");
  STD_TORCH_CHECK(std::max(call.queries, call.keys) < INT_MAX / 2 && call.groups.segments < INT_MAX / 4, call.op,
                  " on CUDA takes up to 2**30 tokens, and as many slots");
}

}  // namespace

// The numbers in these lists are how many tiles of 8 columns a step takes.

void attention_forward(const Attention& call, Tensor* out, Tensor& log_sum) {
  check(call);
  if (call.queries == 0) return;
  const auto run = [&](auto function) { return function(call, out, log_sum); };
  switch (call.query.scalar_type()) {
    case ScalarType::Half: return run(forward<c10::Half, float, true, 4>);
    case ScalarType::BFloat16: return run(forward<c10::BFloat16, float, true, 4>);
    case ScalarType::Double: return run(forward<double, double, false, 2>);
    default: return call.tf32 ? run(forward<float, float, true, 2>) : run(forward<float, float, false, 2>);
  }
}

Tensor attention_backward(const Attention& call, const Tensor& grad, const Tensor& out, const Tensor& log_sum,
                          Tensor& grad_query, Tensor& grad_key, Tensor* grad_value) {
  check(call);
  const auto run = [&](auto function) { return function(call, grad, out, log_sum, grad_query, grad_key, grad_value); };
  switch (call.query.scalar_type()) {
    case ScalarType::Half: return run(backward<c10::Half, float, true, 4>);
    case ScalarType::BFloat16: return run(backward<c10::BFloat16, float, true, 4>);
    case ScalarType::Double: return run(backward<double, double, false, 2>);
    default: return call.tf32 ? run(backward<float, float, true, 2>) : run(backward<float, float, false, 2>);
  }
}

void attention_accumulate(const Attention& call, const Tensor& log_sum, Tensor& total, Tensor& mass) {
  check(call);
  write_in_type(call, log_sum, &total, nullptr, 0, mass);
}

void attention_write(const Attention& call, const Tensor& log_sum, double rate, Tensor& blended, Tensor& mass) {
  check(call);
  write_in_type(call, log_sum, nullptr, &blended, std::log1p(-rate), mass);
}

void blend_keys(const char* op, const Tensor& key, const Tensor& total, const Tensor& mass, double rate, Tensor& blended,
                cudaStream_t stream) {
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
