// Attention within groups, the forward kernel: of masked_correlation, and of reading memory.
//
// A query answers with a mean of its group's values, weighted by a softmax over temperature * <unit(query), unit(key)>.
// A block takes a tile of rows (queries, or keys where a sum for each key is asked for) and goes through tiles of the
// columns that belong to them (keys, or queries), with a warp for 16 rows; where the tile has fewer rows than that, the
// other warps still help to load. Correlations of a tile live in registers and shared memory only. A launch's z splits
// the columns into shares, which one more kernel adds up.
#pragma once

#include "token_lists.cuh"

namespace showface {

constexpr double kLog2E = 1.44269504088896340736;
// Of 8 columns: the part of the values that one block of the forward sums, in registers.
template <typename A>
constexpr int kValueTiles = sizeof(A) == 8 ? 8 : 16;
// How many blocks at least a multiprocessor's registers are to hold. Without this number the compiler rather spills a few.
template <typename A>
constexpr int kBlocks = sizeof(A) == 8 ? 2 : 3;
constexpr int kMaxRows = kThreads / 2;  // of a tile; a multiple of 16 up to this
constexpr int kMaxSplits = 16;

// The arguments that this kernel and those of attention_sums.cuh share.
template <typename T, typename A>
struct Problem {
  const T *query, *key, *value;  // (queries, C), (keys, C), (keys, V)
  Groups groups;
  const void* temperature;
  ScalarType temperature_type;
  A scale;
  int queries, keys, channels, values;
  bool aligned;  // rows of all three can be copied 16 bytes at a time

  __device__ A temperature_here() const { return scale * load_scalar<A>(temperature, temperature_type); }
};

// The tiles of columns that this block goes through.
struct Steps {
  int begin, end;
  __device__ Steps(int columns, int tile_columns) {
    const int all = divide_up(columns, tile_columns), each = divide_up(all, static_cast<int>(gridDim.z));
    begin = min(static_cast<int>(blockIdx.z) * each, all);
    end = min(begin + each, all);
  }
};

// Where results go: to the tensor asked for, or with splits to this split's share of it.
template <typename T, typename A>
struct Target {
  T* whole;
  A* share;  // null without splits
  __device__ void store(int64_t at, A x) const {
    if (share != nullptr) {
      share[at] = x;
    } else {
      whole[at] = static_cast<T>(x);
    }
  }
};

// out (queries, V) and log_sum (queries). With splits, `log_sum` (splits, queries) is -inf where a split has nothing,
// and the answers go to `share` (splits, queries, V); merge_kernel makes one of them.
template <typename T, typename A, bool TensorCores, int KeyTiles>
__global__ void __launch_bounds__(kThreads, kBlocks<A>)
    forward_kernel(Problem<T, A> p, A high_temperature, int rows, int stages, T* __restrict__ out,
                   A* __restrict__ log_sum, A* __restrict__ share) {
  constexpr int columns = 8 * KeyTiles, value_parts = kValueTiles<A>;
  const bool alone = gridDim.z == 1;
  const int64_t split = static_cast<int64_t>(blockIdx.z) * p.queries;
  const int first_value = blockIdx.y * value_parts * 8, here = min(value_parts * 8, p.values - first_value);
  const Target<T, A> answer{out, alone ? nullptr : share + split * p.values};
  log_sum += split;

  Arena arena{dynamic_shared_memory<unsigned char>()};
  Groups groups = p.groups;
  if (groups.unsorted) groups.sort(arena);
  const Work work = groups.find<false>(rows);
  const Steps steps(work.columns.count, columns);
  if (steps.begin == steps.end) {
    for (int i = threadIdx.x; i < work.rows.count && blockIdx.y == 0; i += blockDim.x) {
      log_sum[work.rows[i]] = alone ? A(0) : -INFINITY;
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

  static_assert(columns <= kThreads, "a thread for each column");
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
  copy_wait<0>();
  __syncthreads();
  make_unit<TensorCores, T, A>(query, stride, rows, depth, nullptr);

  const A temperature = p.temperature_here() * A(kLog2E);
  // A correlation is at most the temperature: that is enough to subtract before exponentials, unless it is so high that
  // a row of small correlations would vanish.
  const bool high = temperature > high_temperature * A(kLog2E);
  const int warp_row = threadIdx.x / 32 * 16;
  A peak[2] = {temperature, temperature}, total[2] = {0, 0};
  if (high) peak[0] = peak[1] = -INFINITY;
  Accumulator<A> mixed[value_parts];
  const auto prepare = [&](int step) {
    make_unit<TensorCores, T, A>(keys + step % stages * columns * stride, stride, columns, depth, nullptr);
  };
  const auto multiply = [&](int step) {
    if (warp_row >= work.rows.count) return;
    Accumulator<A> score[KeyTiles];
    warp_product<TensorCores, true>(score, query + warp_row * stride, stride, keys + step % stages * columns * stride,
                                    stride, depth);
    A top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int tile = 0; tile < KeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = step * columns + tile * 8 + score[tile].column(i) < work.columns.count;
        score[tile].x[i] = valid ? score[tile].x[i] * temperature : -INFINITY;
        top[i / 2] = Max<A>::of(top[i / 2], score[tile].x[i]);
      }
    }
    if (high) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const A new_peak = Max<A>::of(peak[half], max_of_row(top[half]));
        const A keep = exp2(peak[half] - new_peak);
        total[half] *= keep;
#pragma unroll
        for (int tile = 0; tile < value_parts; ++tile) {
          mixed[tile].x[2 * half] *= keep;
          mixed[tile].x[2 * half + 1] *= keep;
        }
        peak[half] = new_peak;
      }
    }
#pragma unroll
    for (int tile = 0; tile < KeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const A power = exp2(score[tile].x[i] - peak[i / 2]);
        total[i / 2] += power;
        weight[(warp_row + score[tile].row(i)) * weight_stride + tile * 8 + score[tile].column(i)] =
            as_operand<TensorCores, T>(power);
      }
    }
    __syncwarp();
    if (value_tiles > 0) {
      warp_product<TensorCores, false>(mixed, weight + warp_row * weight_stride, weight_stride,
                                       values + step % stages * columns * value_stride, value_stride, columns,
                                       value_tiles);
    }
  };
  pipeline(steps.begin, steps.end, stages, fetch, list, load, prepare, multiply);
  if (warp_row >= work.rows.count) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] = sum_of_row(total[half]);
    const int row = token[warp_row + mixed[0].row(2 * half)];
    if (row < 0) continue;
    if (blockIdx.y == 0 && warp_lane() % 4 == 0) log_sum[row] = peak[half] + log2(total[half]);
#pragma unroll
    for (int tile = 0; tile < value_parts; ++tile) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int column = tile * 8 + mixed[tile].column(i);
        if (column < here) {
          answer.store(static_cast<int64_t>(row) * p.values + first_value + column, mixed[tile].x[i] / total[half]);
        }
      }
    }
  }
}

}  // namespace showface
