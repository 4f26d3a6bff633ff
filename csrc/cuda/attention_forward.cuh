// The forward kernel of attention within groups. masked_correlation and memory_attend use it.
//
// out[i] = sum over the keys j of softmax(temperature * <unit(query[i]), unit(key[j])>) * value[j].
//
//   pointer             null when
//   out                 only lse is wanted (then V is 0)
//   partial             the keys are not split (gridDim.z == 1)
//   Problem.temperature there is no temperature tensor; it counts as 1
//   Groups.order        each block sorts the tokens itself (Groups.unsorted), and so with Groups.bounds
//   Groups.region       the tokens are sorted before (order and bounds are given)
//
// A block works on one tile of rows (queries) and loops over tiles of columns (keys). Each warp owns 16 rows. In a tile
// with fewer rows the remaining warps only help to load. Scores stay in registers and shared memory. The backward
// kernels use the same scheme; for the gradients of keys, rows are keys and columns are queries. gridDim.z splits the
// columns. Each split then writes a partial result, and a kernel in attention_combine.cuh combines them.
#pragma once

#include "token_lists.cuh"

namespace showface {

// Value columns that one forward block accumulates in registers, in tiles of 8 columns.
template <typename A>
constexpr int kValueTiles = sizeof(A) == 8 ? 8 : 16;
// Minimum number of resident blocks per multiprocessor. Without this bound the compiler chooses code that spills.
template <typename A>
constexpr int kBlocks = sizeof(A) == 8 ? 2 : 3;
constexpr int kMinRows = 16, kMaxRows = kThreads / 2;  // Tile heights. They are multiples of 16.
constexpr int kMaxSplits = 16;

// Arguments of the forward kernel and of the backward kernels.
template <typename T, typename A>
struct Problem {
  const T *query, *key, *value;  // (queries, C), (keys, C), (keys, V)
  Groups groups;
  const void* temperature;
  ScalarType temperature_type;
  A scale;
  int queries, keys, channels, values;
  bool aligned;  // All rows can be copied 16 bytes at a time.

  __device__ A temperature_here() const { return scale * load_scalar<A>(temperature, temperature_type); }
};

// The range of column tiles that this block (its split, blockIdx.z) processes.
struct Steps {
  int begin, end;
  __device__ Steps(int columns, int tile_columns) {
    const int all = divide_up(columns, tile_columns), each = divide_up(all, static_cast<int>(gridDim.z));
    begin = min(static_cast<int>(blockIdx.z) * each, all);
    end = min(begin + each, all);
  }
};

// Destination of results: the final tensor, or with several splits the partial result of this split.
template <typename T, typename A>
struct Target {
  T* whole;
  A* partial;  // Null when there is one split.
  __device__ void store(int64_t at, A x) const {
    if (partial != nullptr) {
      partial[at] = x;
    } else {
      whole[at] = static_cast<T>(x);
    }
  }
};

// Writes out (queries, V) and lse (queries), the log-sum-exp (base 2) of each query's scores. With several splits, lse
// is (splits, queries), -inf where a split has no keys, and the outputs go to partial (splits, queries, V) for
// combine_kernel.
template <typename T, typename A, bool TensorCores, int KeyTiles>
__global__ void __launch_bounds__(kThreads, kBlocks<A>)
    forward_kernel(Problem<T, A> p, A high_temperature, int rows, int stages, T* __restrict__ out, A* __restrict__ lse,
                   A* __restrict__ partial) {
  constexpr int columns = 8 * KeyTiles, value_parts = kValueTiles<A>;
  const bool alone = gridDim.z == 1;
  const int64_t split = static_cast<int64_t>(blockIdx.z) * p.queries;
  const int first_value = blockIdx.y * value_parts * 8, here = min(value_parts * 8, p.values - first_value);
  const Target<T, A> answer{out, alone ? nullptr : partial + split * p.values};
  lse += split;

  Arena arena{dynamic_shared_memory<unsigned char>()};
  Groups groups = p.groups;
  if (groups.unsorted) groups.sort(arena);
  const Work work = groups.find<false>(rows);
  const Steps steps(work.columns.count, columns);
  if (steps.begin == steps.end) {
    for (int i = threadIdx.x; i < work.rows.count && blockIdx.y == 0; i += blockDim.x) {
      lse[work.rows[i]] = alone ? A(0) : -INFINITY;
    }
    for (int i = threadIdx.x; alone && i < work.rows.count * here; i += blockDim.x) {
      out[static_cast<int64_t>(work.rows[i / here]) * p.values + first_value + i % here] = static_cast<T>(0.f);
    }
    return;
  }

  const int depth = static_cast<int>(round_up(p.channels, 16)), stride = row_stride<T>(p.channels);
  const int value_stride = row_stride<T>(min(p.values, value_parts * 8)), value_tiles = divide_up(here, 8);
  constexpr int weight_stride = row_stride<T>(columns);
  T* const query = arena.take<T>(rows * stride);
  T* const keys = arena.take<T>(stages * columns * stride);
  T* const values = arena.take<T>(stages * columns * value_stride);
  T* const weight = arena.take<T>(rows * weight_stride);
  int* const token = arena.take<int>(rows);
  int* const key_token = arena.take<int>(2 * columns);

  static_assert(columns <= kThreads, "one thread per column");
  const int column_here = static_cast<int>(threadIdx.x);
  int ahead = -1;
  const auto fetch = [&](int step) {
    if (column_here < columns) ahead = work.columns.or_none(step * columns + column_here);
  };
  const auto list = [&](int step) {
    if (column_here < columns) key_token[step % 2 * columns + column_here] = ahead;
  };
  const auto load = [&](int step) {
    const int* const of = key_token + step % 2 * columns;
    const int at = step % stages * columns;
    load_rows(p.key, p.channels, of, columns, p.channels, depth, p.aligned, keys + at * stride, stride);
    load_rows(p.value + first_value, p.values, of, columns, here, value_tiles * 8, p.aligned,
              values + at * value_stride, value_stride);
    copy_commit();
  };
  for (int i = threadIdx.x; i < rows; i += kThreads) token[i] = work.rows.or_none(i);
  fetch(steps.begin);
  list(steps.begin);
  __syncthreads();
  load_rows(p.query, p.channels, token, rows, p.channels, depth, p.aligned, query, stride);
  load(steps.begin);
  copy_wait();
  __syncthreads();
  make_unit<T, A>(query, stride, rows, depth, nullptr);

  const A temperature = p.temperature_here() * A(kLog2E);
  // Scores are at most the temperature, so subtracting the temperature prevents overflow. At a high temperature all
  // exponentials of a row could underflow, so then the running maximum of the row is subtracted.
  const bool high = temperature > high_temperature * A(kLog2E);
  const int warp_row = threadIdx.x / 32 * 16;
  A row_max[2] = {temperature, temperature}, row_sum[2] = {0, 0};
  if (high) row_max[0] = row_max[1] = -INFINITY;
  Accumulator<A> acc[value_parts];
  const auto prepare = [&](int step) {
    make_unit<T, A>(keys + step % stages * columns * stride, stride, columns, depth, nullptr);
  };
  const auto multiply = [&](int step) {
    if (warp_row >= work.rows.count) return;
    Accumulator<A> score[KeyTiles];
    warp_product<TensorCores, true>(score, query + warp_row * stride, stride, keys + step % stages * columns * stride,
                                    stride, depth);
    A tile_max[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int tile = 0; tile < KeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = step * columns + tile * 8 + score[tile].column(i) < work.columns.count;
        score[tile].x[i] = valid ? score[tile].x[i] * temperature : -INFINITY;
        tile_max[i / 2] = Max<A>::of(tile_max[i / 2], score[tile].x[i]);
      }
    }
    if (high) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const A new_max = Max<A>::of(row_max[half], max_of_row(tile_max[half]));
        const A keep = exp2(row_max[half] - new_max);
        row_sum[half] *= keep;
#pragma unroll
        for (int tile = 0; tile < value_parts; ++tile) {
          acc[tile].x[2 * half] *= keep;
          acc[tile].x[2 * half + 1] *= keep;
        }
        row_max[half] = new_max;
      }
    }
#pragma unroll
    for (int tile = 0; tile < KeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const A power = exp2(score[tile].x[i] - row_max[i / 2]);
        row_sum[i / 2] += power;
        const int column = stored_column<TensorCores, T>(tile * 8 + score[tile].column(i));
        weight[(warp_row + score[tile].row(i)) * weight_stride + column] = static_cast<T>(power);
      }
    }
    __syncwarp();
    if (value_tiles > 0) {
      warp_product<TensorCores, false>(acc, weight + warp_row * weight_stride, weight_stride,
                                       values + step % stages * columns * value_stride, value_stride, columns,
                                       value_tiles);
    }
  };
  pipeline(steps.begin, steps.end, stages, fetch, list, load, prepare, multiply);
  if (warp_row >= work.rows.count) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    row_sum[half] = sum_of_row(row_sum[half]);
    const int row = token[warp_row + acc[0].row(2 * half)];
    if (row < 0) continue;
    if (blockIdx.y == 0 && warp_lane() % 4 == 0) lse[row] = row_max[half] + log2(row_sum[half]);
#pragma unroll
    for (int tile = 0; tile < value_parts; ++tile) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int column = tile * 8 + acc[tile].column(i);
        if (column < here) {
          answer.store(static_cast<int64_t>(row) * p.values + first_value + column, acc[tile].x[i] / row_sum[half]);
        }
      }
    }
  }
}

}  // namespace showface
