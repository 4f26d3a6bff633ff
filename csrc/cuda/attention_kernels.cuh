// The kernels of attention within groups: of masked_correlation, and of reading and writing memory.
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
constexpr int kValueTiles = 16;  // of 8 columns: the part of the values that one block of the forward sums
constexpr int kThreads = 128;
constexpr int kMaxRows = kThreads / 2;  // of a tile; a multiple of 16 up to this
constexpr int kMaxSplits = 16;

// The arguments that all kernels share.
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
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Problem<T, A> p, A high_temperature, int rows, int stages, T* __restrict__ out,
                   A* __restrict__ log_sum, A* __restrict__ share) {
  constexpr int columns = 8 * KeyTiles;
  const bool alone = gridDim.z == 1;
  const int64_t split = static_cast<int64_t>(blockIdx.z) * p.queries;
  const int first_value = blockIdx.y * kValueTiles * 8, here = min(kValueTiles * 8, p.values - first_value);
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
  const int value_stride = row_stride<T>(min(p.values, kValueTiles * 8)), value_tiles = divide_up(here, 8);
  constexpr int weight_stride = row_stride<T>(columns);
  T* const query = arena.take<T>(rows * stride);
  T* const keys = arena.take<T>(stages * columns * stride);
  T* const values = arena.take<T>(stages * columns * value_stride);
  T* const weight = arena.take<T>(rows * weight_stride);
  int* const token = arena.take<int>(rows);
  int* const key_token = arena.take<int>(2 * columns);

  const auto list = [&](int step) {
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
      const int j = step * columns + i;
      key_token[step % 2 * columns + i] = j < work.columns.count ? work.columns[j] : -1;
    }
  };
  const auto load = [&](int step) {
    const int* const of = key_token + step % 2 * columns;
    const int at = step % stages * columns;
    load_rows(p.key, p.channels, of, columns, p.channels, depth, p.aligned, keys + at * stride, stride);
    load_rows(p.value + first_value, p.values, of, columns, here, value_tiles * 8, p.aligned,
              values + at * value_stride, value_stride);
    copy_commit();
  };
  for (int i = threadIdx.x; i < rows; i += blockDim.x) token[i] = i < work.rows.count ? work.rows[i] : -1;
  list(steps.begin);
  __syncthreads();
  load_rows(p.query, p.channels, token, rows, p.channels, depth, p.aligned, query, stride);
  load(steps.begin);
  copy_wait<0>();
  __syncthreads();
  make_unit<TensorCores, T, A>(query, stride, rows, p.channels, nullptr);

  const A temperature = p.temperature_here() * A(kLog2E);
  // A correlation is at most the temperature: that is enough to subtract before exponentials, unless it is so high that
  // a row of small correlations would vanish.
  const bool high = temperature > high_temperature * A(kLog2E);
  const int warp_row = threadIdx.x / 32 * 16;
  A peak[2] = {temperature, temperature}, total[2] = {0, 0};
  if (high) peak[0] = peak[1] = -INFINITY;
  Accumulator<A> mixed[kValueTiles];
  const auto prepare = [&](int step) {
    make_unit<TensorCores, T, A>(keys + step % stages * columns * stride, stride, columns, p.channels, nullptr);
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
        for (int tile = 0; tile < kValueTiles; ++tile) {
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
  pipeline(steps.begin, steps.end, stages, list, load, prepare, multiply);
  if (warp_row >= work.rows.count) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] = sum_of_row(total[half]);
    const int row = token[warp_row + mixed[0].row(2 * half)];
    if (row < 0) continue;
    if (blockIdx.y == 0 && warp_lane() % 4 == 0) log_sum[row] = peak[half] + log2(total[half]);
#pragma unroll
    for (int tile = 0; tile < kValueTiles; ++tile) {
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

// The answers of all splits, weighted by the sums under their softmax. A warp takes a query.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const A* __restrict__ share, const A* __restrict__ share_log_sum, int splits, int queries, int values,
                 T* __restrict__ out, A* __restrict__ log_sum) {
  const int lane = warp_lane();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= queries) return;
  const A mine = lane < splits ? share_log_sum[static_cast<int64_t>(lane) * queries + row] : -INFINITY;
  const A peak = warp_reduce<Max>(mine);
  const bool answered = peak > -INFINITY;
  const A weight = answered ? exp2(mine - peak) : A(0);
  const A total = warp_reduce<Sum>(weight);
  if (lane == 0) log_sum[row] = answered ? peak + log2(total) : A(0);
  for (int first = 0; first < values; first += 32) {
    const int c = first + lane;
    A mixed = 0;
    for (int split = 0; split < splits; ++split) {
      const A part = __shfl_sync(0xffffffffu, weight, split);
      // A split without keys has left its share as it was.
      if (part > 0 && c < values) mixed += part * share[(static_cast<int64_t>(split) * queries + row) * values + c];
    }
    if (c < values) out[row * values + c] = static_cast<T>(answered ? mixed / total : A(0));
  }
}

// What is summed for each row: the gradient of a query, those of a key and its value, or what is written to a key: the
// queries that look at it, by their weight, and that weight.
enum class Role { query, key, write };

// The accumulators that fit into registers: a part of the channels, of 8 columns each.
template <Role role>
constexpr int kSumTiles = role == Role::key ? 8 : 16;

// What the three have as arguments.
template <typename T, typename A, Role role>
struct Sums {
  const T *grad, *out;  // (queries, V)
  const A* log_sum;     // (queries)
  A* along;             // (queries): <grad, out>, from the queries' kernel for the keys'
  T* first;             // query: (queries, C). key: (keys, C). write: (keys, C)
  T* second;            // key: (keys, V). write: (keys), the weights
  A* share;             // (splits, size of both), or null
  int64_t first_size, size;
  A* temperature;  // query: (splits, blocks), shares in the gradient of the temperature
  bool tied;       // key: the keys are the values too, and `first` gets both gradients
  T* blended;      // write: (keys, C), the keys moved towards what is written to them, and then no `first`
  A log_keep;      // what a unit of weight leaves of a key, its logarithm
};

// Of a number of a key, what a write of such a weight and weighted sum makes. A key without weight keeps its exact bits.
template <typename T, typename A>
__device__ __forceinline__ T blend(T old, A weight, A sum, A log_keep) {
  const A wide = static_cast<A>(old);
  return weight > 0 ? static_cast<T>(wide - expm1(weight * log_keep) * (sum / weight - wide)) : old;
}

// With score = row * column, weight = 2 ** (score * temperature - log_sum) and the gradient of score from that of the
// answers, a row's gradient is the sum over columns of grad_score * column, and for values, of weight * grad.
template <typename T, typename A, bool TensorCores, Role role, int ColumnTiles>
__global__ void __launch_bounds__(kThreads) sums_kernel(Problem<T, A> p, Sums<T, A, role> s, int rows, int stages) {
  constexpr bool keys = role != Role::query, gradients = role != Role::write;
  constexpr int columns = 8 * ColumnTiles, sum_tiles = kSumTiles<role>, part = 8 * sum_tiles;
  const int first_channel = blockIdx.y * part;
  // Of this block's part, how many channels vectors and values have.
  const int channels_here = gradients ? min(part, p.channels - first_channel) : 0;
  const int values_here = keys ? min(part, p.values - first_channel) : 0;
  const bool alone = gridDim.z == 1;
  A* const share = alone ? nullptr : s.share + blockIdx.z * s.size;
  const Target<T, A> to_row{s.first, share};
  const Target<T, A> to_value{gradients ? s.second : s.first, alone ? nullptr : share + (gradients ? s.first_size : 0)};
  const Target<T, A> to_mass{s.second, alone ? nullptr : share + s.first_size};

  Arena arena{dynamic_shared_memory<unsigned char>()};
  Groups groups = p.groups;
  if (groups.unsorted) groups.sort(arena);
  const Work work = groups.find<keys>(rows);
  const Steps steps(work.columns.count, columns);
  if (steps.begin == steps.end) {
    for (int i = threadIdx.x; i < work.rows.count * part; i += blockDim.x) {
      const int64_t row = work.rows[i / part];
      const int c = i % part;
      if (c < channels_here) to_row.store(row * p.channels + first_channel + c, 0);
      if (c < values_here && !s.tied) {
        const int64_t at = row * p.values + first_channel + c;
        if (!gradients && alone && s.blended != nullptr) {
          s.blended[at] = p.key[at];
        } else {
          to_value.store(at, 0);
        }
      }
      if (!gradients && blockIdx.y == 0 && c == 0) to_mass.store(row, 0);
    }
    if (!keys && blockIdx.y == 0 && threadIdx.x == 0) s.temperature[blockIdx.z * gridDim.x + blockIdx.x] = 0;
    return;
  }

  // A query goes with the gradient of its answer, a key with its value. What is written is the queries themselves, of
  // which only this part is needed.
  const int depth = static_cast<int>(round_up(p.channels, 16)), stride = row_stride<T>(p.channels);
  const int value_width = gradients ? p.values : values_here, value_depth = static_cast<int>(round_up(value_width, 16));
  const int value_stride = row_stride<T>(gradients ? p.values : min(p.values, part));
  const int value_column = gradients ? first_channel : 0;  // where the part is in the tile
  const T* const row_vectors = keys ? p.key : p.query;
  const T* const row_values = keys ? p.value : s.grad;
  const T* const column_vectors = keys ? p.query : p.key;
  const T* const column_values = !gradients ? p.query + first_channel : keys ? s.grad : p.value;
  constexpr int weight_stride = row_stride<T>(columns);
  T* const row_vector = arena.take<T>(rows * stride);
  T* const row_value = arena.take<T>(gradients ? rows * value_stride : 0);
  T* const column_vector = arena.take<T>(stages * columns * stride);
  T* const column_value = arena.take<T>(stages * columns * value_stride);
  T* const grad_score = arena.take<T>(gradients ? rows * weight_stride : 0);
  T* const weight = arena.take<T>(keys ? rows * weight_stride : 0);
  A* const inverse = arena.take<A>(rows);
  A* const shift = arena.take<A>(keys ? 2 * columns : rows);  // log_sum of the queries
  A* const delta = arena.take<A>(keys ? 2 * columns : rows);  // <grad, out> of them
  A* const of_row = arena.take<A>(rows);
  int* const token = arena.take<int>(rows);
  int* const column_token = arena.take<int>(2 * columns);

  const auto list = [&](int step) {
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
      const int j = step * columns + i, at = step % 2 * columns + i;
      const int other = j < work.columns.count ? work.columns[j] : -1;
      column_token[at] = other;
      if (keys) shift[at] = other >= 0 ? s.log_sum[other] : A(0);
      if (keys && gradients) delta[at] = other >= 0 ? s.along[other] : A(0);
    }
  };
  const auto load = [&](int step) {
    const int* const of = column_token + step % 2 * columns;
    const int at = step % stages * columns;
    load_rows(column_vectors, p.channels, of, columns, p.channels, depth, p.aligned, column_vector + at * stride, stride);
    load_rows(column_values, p.values, of, columns, value_width, value_depth, p.aligned,
              column_value + at * value_stride, value_stride);
    copy_commit();
  };
  for (int i = threadIdx.x; i < rows; i += blockDim.x) token[i] = i < work.rows.count ? work.rows[i] : -1;
  list(steps.begin);
  __syncthreads();
  load_rows(row_vectors, p.channels, token, rows, p.channels, depth, p.aligned, row_vector, stride);
  if (gradients) {
    load_rows(row_values, p.values, token, rows, p.values, value_depth, p.aligned, row_value, value_stride);
  }
  load(steps.begin);
  copy_wait<0>();
  __syncthreads();
  make_unit<TensorCores, T, A>(row_vector, stride, rows, p.channels, inverse);
  if (!keys) {
    for (int r = threadIdx.x / 32; r < work.rows.count; r += kThreads / 32) {
      A sum = 0;
      for (int c = warp_lane(); c < p.values; c += 32) {
        sum += static_cast<A>(row_value[r * value_stride + c]) *
               static_cast<A>(s.out[static_cast<int64_t>(token[r]) * p.values + c]);
      }
      sum = warp_reduce<Sum>(sum);
      if (warp_lane() == 0) {
        delta[r] = sum;
        shift[r] = s.log_sum[token[r]];
        if (blockIdx.y == 0 && blockIdx.z == 0) s.along[token[r]] = sum;
      }
    }
  }

  const A temperature = p.temperature_here();
  const int warp_row = threadIdx.x / 32 * 16;
  const int sums_here = divide_up(max(channels_here, 0), 8), value_sums_here = divide_up(max(values_here, 0), 8);
  Accumulator<A> sum[gradients ? sum_tiles : 1], sum_value[keys ? sum_tiles : 1];
  // Of a row: the sum of grad_score * score, which is the part of its gradient along itself, or of the weights.
  A along[2] = {0, 0};
  const auto prepare = [&](int step) {
    make_unit<TensorCores, T, A>(column_vector + step % stages * columns * stride, stride, columns, p.channels,
                    static_cast<A*>(nullptr));
  };
  const auto multiply = [&](int step) {
    if (warp_row >= work.rows.count) return;
    const T* const vectors = column_vector + step % stages * columns * stride;
    const T* const values = column_value + step % stages * columns * value_stride;
    Accumulator<A> score[ColumnTiles], grad_weight[ColumnTiles];
    warp_product<TensorCores, true>(score, row_vector + warp_row * stride, stride, vectors, stride, depth);
    if constexpr (gradients) {
      warp_product<TensorCores, true>(grad_weight, row_value + warp_row * value_stride, value_stride, values,
                                      value_stride, value_depth);
    }
#pragma unroll
    for (int tile = 0; tile < ColumnTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = warp_row + score[tile].row(i), column = tile * 8 + score[tile].column(i);
        const int of_query = keys ? step % 2 * columns + column : row;
        const bool valid = row < work.rows.count && step * columns + column < work.columns.count;
        const A power = valid ? exp2(score[tile].x[i] * temperature * A(kLog2E) - shift[of_query]) : A(0);
        if constexpr (gradients) {
          const A gradient = valid ? power * (grad_weight[tile].x[i] - delta[of_query]) : A(0);
          along[i / 2] += gradient * score[tile].x[i];
          grad_score[row * weight_stride + column] = as_operand<TensorCores, T>(gradient);
        } else {
          along[i / 2] += power;
        }
        if constexpr (keys) weight[row * weight_stride + column] = as_operand<TensorCores, T>(power);
      }
    }
    __syncwarp();
    if constexpr (gradients) {
      if (sums_here > 0) {
        warp_product<TensorCores, false>(sum, grad_score + warp_row * weight_stride, weight_stride,
                                         vectors + first_channel, stride, columns, sums_here);
      }
    }
    if constexpr (keys) {
      if (value_sums_here > 0) {
        warp_product<TensorCores, false>(sum_value, weight + warp_row * weight_stride, weight_stride,
                                         values + value_column, value_stride, columns, value_sums_here);
      }
    }
  };
  pipeline(steps.begin, steps.end, stages, list, load, prepare, multiply);
#pragma unroll
  for (int half = 0; half < 2 && warp_row < work.rows.count; ++half) {
    along[half] = sum_of_row(along[half]);
    const int r = warp_row + sum[0].row(2 * half);
    if (!keys && warp_lane() % 4 == 0) of_row[r] = along[half];
    if (token[r] < 0) continue;
    const int64_t row = token[r];
    if (!gradients && blockIdx.y == 0 && warp_lane() % 4 == 0) to_mass.store(row, along[half]);
    // Rows shorter than kMinNorm are scaled by a constant: nothing is projected out.
    const A project = inverse[r] < A(1 / kMinNorm) ? along[half] : A(0);
#pragma unroll
    for (int tile = 0; tile < sum_tiles; ++tile) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int column = tile * 8 + sum[0].column(i);
        if constexpr (gradients) {
          if (column < channels_here) {
            const A unit = static_cast<A>(row_vector[r * stride + first_channel + column]);
            A gradient = (sum[tile].x[i] - unit * project) * temperature * inverse[r];
            if constexpr (keys) gradient += s.tied ? sum_value[tile].x[i] : A(0);
            to_row.store(row * p.channels + first_channel + column, gradient);
          }
        }
        if constexpr (keys) {
          if (column < values_here && !s.tied) {
            const int64_t at = row * p.values + first_channel + column;
            if (!gradients && alone && s.blended != nullptr) {
              s.blended[at] = blend(p.key[at], along[half], sum_value[tile].x[i], s.log_keep);
            } else {
              to_value.store(at, sum_value[tile].x[i]);
            }
          }
        }
      }
    }
  }
  if (!keys && blockIdx.y == 0) {
    __syncthreads();
    if (threadIdx.x == 0) {
      A all = 0;
      for (int r = 0; r < work.rows.count; ++r) all += of_row[r];
      s.temperature[blockIdx.z * gridDim.x + blockIdx.x] = all;
    }
  }
}

// Add up the shares of all splits: (splits, size) to `first_size` numbers of `first` and the rest of `second`.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    add_shares_kernel(const A* __restrict__ share, int splits, int64_t size, int64_t first_size, T* __restrict__ first,
                      T* __restrict__ second) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  A sum = 0;
  for (int split = 0; split < splits; ++split) sum += share[split * size + i];
  (i < first_size ? first[i] : second[i - first_size]) = static_cast<T>(sum);
}

// Blend sums into keys, both in shares of splits: sum (splits, keys, C) and weight (splits, keys) lie `size` apart. `mass`,
// if not null, gets the weights added up. A warp takes a key.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads, 4)
    blend_kernel(const T* __restrict__ key, const A* __restrict__ sum, const A* __restrict__ weight, int splits,
                 int64_t size, A log_keep, int64_t keys, int channels, T* __restrict__ blended, T* __restrict__ mass) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= keys) return;
  A all = 0;
  for (int split = 0; split < splits; ++split) all += weight[split * size + row];
  if (mass != nullptr && warp_lane() == 0) mass[row] = static_cast<T>(all);
  for (int64_t i = row * channels + warp_lane(); i < (row + 1) * channels; i += 32) {
    A total = 0;
    for (int split = 0; split < splits; ++split) total += sum[split * size + i];
    blended[i] = blend(key[i], all, total, log_keep);
  }
}

}  // namespace showface
