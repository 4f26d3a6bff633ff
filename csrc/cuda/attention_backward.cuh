// The backward kernel of attention within groups, which also computes the sums of memory_accumulate and memory_write.
//
//   pointer      Role::query     Role::key                    Role::accumulate
//   grad, out    set             set                          null
//   lse          set             set                          set
//   delta        set, written    set, read                    null
//   first        grad of query   grad of key                  total; null with `blended`
//   second       null            grad of value; null if tied  mass (the sum of the weights per key)
//   temperature  set             null                         null
//   blended      null            null                         null unless the keys are blended
//   partial      null when there is one split (gridDim.z == 1)
//
// The pointers of Problem and Groups are null in the same cases as in attention_forward.cuh.
#pragma once

#include "attention_forward.cuh"
#include "attention_combine.cuh"

namespace showface {

// What a row accumulates. query: the gradient of a query. key: the gradients of a key and of its value. accumulate: the
// weighted sum of the queries that attend to a key, and the sum of their weights.
enum class Role { query, key, accumulate };

// Channels that one block accumulates in registers, in tiles of 8 columns.
template <typename A, Role role>
constexpr int kGradTiles = kValueTiles<A> / (role == Role::key ? 2 : 1);

// Arguments of all three roles. The table above says which pointers are null.
template <typename T, typename A, Role role>
struct BackwardArguments {
  const T *grad, *out;       // (queries, V)
  const A* lse;              // (queries)
  A* delta;                  // (queries): <grad, out>
  T* first;                  // query: (queries, C). key: (keys, C). accumulate: (keys, C)
  T* second;                 // key: (keys, V). accumulate: (keys), the sum of the weights
  A* partial;                // (splits, size): partial results of `first`, then of `second`
  int64_t first_size, size;  // Elements of `first`, and of both.
  A* temperature;            // query: (splits, blocks), partial sums of the gradient of the temperature
  bool tied;                 // key: keys and values are one tensor, and `first` gets both gradients.
  T* blended;                // accumulate: (keys, C), the keys after the write
  A log_keep;                // accumulate: log of the fraction of a key that remains per unit of weight
};

// With score = <unit row, unit column> and weight = 2 ** (score * temperature * log2(e) - lse):
//   grad_score = weight * (<grad, value> - delta),
//   gradient of the unit row = temperature * sum over the columns of grad_score * unit column,
//   gradient of a value = sum over the columns of weight * grad.
template <typename T, typename A, bool TensorCores, Role role, int ColumnTiles>
__global__ void __launch_bounds__(kThreads, kBlocks<A>)
    backward_kernel(Problem<T, A> p, BackwardArguments<T, A, role> s, int rows, int stages) {
  constexpr bool keys = role != Role::query, gradients = role != Role::accumulate;
  constexpr int columns = 8 * ColumnTiles, sum_tiles = kGradTiles<A, role>, part = 8 * sum_tiles;
  const int first_channel = blockIdx.y * part;
  // Columns of the vectors and of the values in this block's part.
  const int channels_here = gradients ? min(part, p.channels - first_channel) : 0;
  const int values_here = keys ? min(part, p.values - first_channel) : 0;
  const bool alone = gridDim.z == 1;
  A* const partial = alone ? nullptr : s.partial + blockIdx.z * s.size;
  const Target<T, A> to_row{s.first, partial};
  const Target<T, A> to_value{gradients ? s.second : s.first,
                              alone ? nullptr : partial + (gradients ? s.first_size : 0)};
  const Target<T, A> to_mass{s.second, alone ? nullptr : partial + s.first_size};

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

  // A query is paired with the gradient of its output, a key with its value. For Role::accumulate the column values are
  // the queries themselves, of which only this part is loaded.
  const int depth = static_cast<int>(round_up(p.channels, 16)), stride = row_stride<T>(p.channels);
  const int value_width = gradients ? p.values : values_here, value_depth = static_cast<int>(round_up(value_width, 16));
  const int value_stride = row_stride<T>(gradients ? p.values : min(p.values, part));
  const int value_column = gradients ? first_channel : 0;  // First column of the part within the tile.
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
  A* const lse = arena.take<A>(keys ? 2 * columns : rows);
  A* const delta = arena.take<A>(keys ? 2 * columns : rows);
  A* const row_projection = arena.take<A>(rows);
  int* const token = arena.take<int>(rows);
  int* const column_token = arena.take<int>(2 * columns);

  static_assert(columns <= kThreads, "one thread per column");
  const int column_here = static_cast<int>(threadIdx.x);
  const auto token_of = [&](int step) {
    return column_here < columns ? work.columns.or_none(step * columns + column_here) : -1;
  };
  // Token indices are loaded one step before the data they index, so that no load waits for another.
  int ahead = -1, next = token_of(steps.begin);
  A lse_ahead = 0, delta_ahead = 0;
  const auto fetch = [&](int step) {
    ahead = next;
    if (keys && ahead >= 0) {
      lse_ahead = s.lse[ahead];
      if (gradients) delta_ahead = s.delta[ahead];
    }
    next = token_of(step + 1);
  };
  const auto list = [&](int step) {
    if (column_here >= columns) return;
    const int at = step % 2 * columns + column_here;
    column_token[at] = ahead;
    if (keys) lse[at] = lse_ahead;
    if (keys && gradients) delta[at] = delta_ahead;
  };
  const auto load = [&](int step) {
    const int* const of = column_token + step % 2 * columns;
    const int at = step % stages * columns;
    load_rows(column_vectors, p.channels, of, columns, p.channels, depth, p.aligned, column_vector + at * stride,
              stride);
    load_rows(column_values, p.values, of, columns, value_width, value_depth, p.aligned,
              column_value + at * value_stride, value_stride);
    copy_commit();
  };
  for (int i = threadIdx.x; i < rows; i += kThreads) token[i] = work.rows.or_none(i);
  fetch(steps.begin);
  list(steps.begin);
  __syncthreads();
  load_rows(row_vectors, p.channels, token, rows, p.channels, depth, p.aligned, row_vector, stride);
  if (gradients) {
    load_rows(row_values, p.values, token, rows, p.values, value_depth, p.aligned, row_value, value_stride);
  }
  load(steps.begin);
  copy_wait();
  __syncthreads();
  make_unit<T, A>(row_vector, stride, rows, depth, inverse);
  if (!keys) {
    // Four lanes per row.
    const int lane = threadIdx.x % 4;
    for (int r = threadIdx.x / 4; r < rows; r += kThreads / 4) {
      A sum = 0;
      const T* const out = s.out + static_cast<int64_t>(max(token[r], 0)) * p.values;
#pragma unroll 4
      for (int c = lane; c < p.values; c += 4) {
        sum += static_cast<A>(row_value[r * value_stride + c]) * static_cast<A>(out[c]);
      }
      sum = sum_of_row(sum);
      if (lane == 0 && token[r] >= 0) {
        delta[r] = sum;
        lse[r] = s.lse[token[r]];
        if (blockIdx.y == 0 && blockIdx.z == 0) s.delta[token[r]] = sum;
      }
    }
  }

  const A temperature = p.temperature_here();
  const int warp_row = threadIdx.x / 32 * 16;
  const int sums_here = divide_up(max(channels_here, 0), 8), value_sums_here = divide_up(max(values_here, 0), 8);
  Accumulator<A> sum[gradients ? sum_tiles : 1], sum_value[keys ? sum_tiles : 1];
  A projection[2] = {0, 0};  // <gradient of the unit row, unit row>, without the temperature. Gradients only.
  A mass[2] = {0, 0};        // Sum of the weights. Role::accumulate only.
  const auto prepare = [&](int step) {
    make_unit<T, A>(column_vector + step % stages * columns * stride, stride, columns, depth, static_cast<A*>(nullptr));
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
        const int at = row * weight_stride + stored_column<TensorCores, T>(column);
        const A power = valid ? exp2(score[tile].x[i] * temperature * A(kLog2E) - lse[of_query]) : A(0);
        if constexpr (gradients) {
          const A gradient = valid ? power * (grad_weight[tile].x[i] - delta[of_query]) : A(0);
          projection[i / 2] += gradient * score[tile].x[i];
          grad_score[at] = static_cast<T>(gradient);
        } else {
          mass[i / 2] += power;
        }
        if constexpr (keys) weight[at] = static_cast<T>(power);
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
  pipeline(steps.begin, steps.end, stages, fetch, list, load, prepare, multiply);
#pragma unroll
  for (int half = 0; half < 2 && warp_row < work.rows.count; ++half) {
    if constexpr (gradients) {
      projection[half] = sum_of_row(projection[half]);
    } else {
      mass[half] = sum_of_row(mass[half]);
    }
    const int r = warp_row + sum[0].row(2 * half);
    if (!keys && warp_lane() % 4 == 0) row_projection[r] = projection[half];
    if (token[r] < 0) continue;
    const int64_t row = token[r];
    if (!gradients && blockIdx.y == 0 && warp_lane() % 4 == 0) to_mass.store(row, mass[half]);
    // Rows shorter than kMinNorm are divided by the constant kMinNorm, so nothing is projected out.
    const A project = inverse[r] < A(1 / kMinNorm) ? projection[half] : A(0);
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
              s.blended[at] = blend(p.key[at], mass[half], sum_value[tile].x[i], s.log_keep);
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
      for (int r = 0; r < work.rows.count; ++r) all += row_projection[r];
      s.temperature[blockIdx.z * gridDim.x + blockIdx.x] = all;
    }
  }
}

}  // namespace showface
