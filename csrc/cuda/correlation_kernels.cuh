// The kernels of masked_correlation on CUDA.
//
// Each image's tokens have been sorted into corrupted and known ones (list_tokens_kernel). A block takes a tile of rows
// (corrupted tokens, or in one of the two backward kernels, keys) and goes through the tiles of columns (keys, or
// corrupted tokens), with a warp for 16 rows. Correlations of a tile live in registers and shared memory only.
#pragma once

#include "../common/correlation.h"
#include "token_tiles.cuh"

namespace showface {

constexpr double kLog2E = 1.44269504088896340736;
constexpr int kValueTiles = 16;  // of 8 columns: the part of the values that one block of the forward sums
constexpr int kGradTiles = 8;    // the same for gradients, of which a block has up to two

// The arguments that all kernels share.
template <typename T, typename A>
struct Problem {
  const T *query, *key, *value;      // (B, N, C), (B, N, C), (B, N, V)
  const int *order, *count;          // (B, N), (B)
  const void* temperature;
  ScalarType temperature_type;
  A scale;
  int tokens, channels, values;
  bool all_keys;
  bool aligned;  // rows of all three can be copied 16 bytes at a time

  __device__ A temperature_here() const { return scale * load_scalar<A>(temperature, temperature_type); }
  // The i-th corrupted token of an image, or the i-th key; -1 past the last one.
  __device__ int query_token(const int* order, int corrupted, int i) const { return i < corrupted ? order[i] : -1; }
  __device__ int key_token(const int* order, int corrupted, int j) const {
    if (all_keys) return j < tokens ? j : -1;
    return j < tokens - corrupted ? order[corrupted + j] : -1;
  }
};

template <typename T, typename A, bool TensorCores, int Warps, int KeyTiles>
__global__ void __launch_bounds__(Warps * 32)
    forward_kernel(Problem<T, A> p, A high_temperature, T* __restrict__ out, A* __restrict__ log_sum) {
  constexpr int rows = 16 * Warps, columns = 8 * KeyTiles;
  const int batch = blockIdx.y, first = blockIdx.x * rows, first_value = blockIdx.z * kValueTiles * 8;
  const int* order = p.order + static_cast<int64_t>(batch) * p.tokens;
  const int corrupted = p.count[batch], keys = p.all_keys ? p.tokens : p.tokens - corrupted;
  const int64_t image = static_cast<int64_t>(batch) * p.tokens;
  const int here = min(kValueTiles * 8, p.values - first_value);

  const int depth = round_up(p.channels, 16), stride = depth + kPad;
  constexpr int value_stride = kValueTiles * 8 + kPad, weight_stride = columns + kPad;
  Arena arena{dynamic_shared_memory<unsigned char>()};
  T* query = arena.take<T>(rows * stride);
  T* key = arena.take<T>(columns * stride);
  T* value = arena.take<T>(columns * value_stride);
  T* weight = arena.take<T>(rows * weight_stride);
  int* token = arena.take<int>(rows);
  int* key_token = arena.take<int>(columns);

  // Known tokens are answered with zeros, by the tile that their place in the list falls into.
  for (int i = threadIdx.x; i < rows; i += blockDim.x) token[i] = p.query_token(order, corrupted, first + i);
  for (int i = threadIdx.x; i < rows * here; i += blockDim.x) {
    const int place = first + i / here;
    if (place >= corrupted && place < p.tokens) {
      out[(image + order[place]) * p.values + first_value + i % here] = static_cast<T>(0.f);
    }
  }
  for (int place = first + threadIdx.x; place < min(first + rows, p.tokens); place += blockDim.x) {
    if (place >= corrupted && blockIdx.z == 0) log_sum[image + order[place]] = 0;
  }
  if (first >= corrupted) return;
  __syncthreads();
  load_rows(p.query + image * p.channels, p.channels, token, rows, p.channels, depth, p.aligned, query, stride);
  finish_loads();
  make_unit<T, A>(query, stride, rows, p.channels, nullptr);

  const A temperature = p.temperature_here() * A(kLog2E);
  // A correlation is at most the temperature: that is enough to subtract before exponentials, unless it is so high that
  // a row of small correlations would vanish.
  const bool high = temperature > high_temperature * A(kLog2E);
  const int warp_row = threadIdx.x / 32 * 16;
  A peak[2] = {temperature, temperature}, total[2] = {0, 0};
  if (high) peak[0] = peak[1] = -INFINITY;
  Accumulator<A> mixed[kValueTiles];
  for (int first_key = 0; first_key < keys; first_key += columns) {
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += blockDim.x) key_token[i] = p.key_token(order, corrupted, first_key + i);
    __syncthreads();
    load_rows(p.key + image * p.channels, p.channels, key_token, columns, p.channels, depth, p.aligned, key, stride);
    load_rows(p.value + image * p.values + first_value, p.values, key_token, columns, here, kValueTiles * 8, p.aligned,
              value, value_stride);
    finish_loads();
    make_unit<T, A>(key, stride, columns, p.channels, nullptr);
    __syncthreads();

    Accumulator<A> score[KeyTiles];
    warp_product<TensorCores, true>(score, query + warp_row * stride, stride, key, stride, depth);
    A top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int tile = 0; tile < KeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = first_key + tile * 8 + score[tile].column(i) < keys;
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
            static_cast<T>(power);
      }
    }
    __syncwarp();
    warp_product<TensorCores, false>(mixed, weight + warp_row * weight_stride, weight_stride, value, value_stride,
                                     columns);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] = sum_of_row(total[half]);
    const int row = token[warp_row + mixed[0].row(2 * half)];
    if (row < 0) continue;
    const bool answered = keys > 0;
    if (blockIdx.z == 0 && warp_lane() % 4 == 0) log_sum[image + row] = answered ? peak[half] + log2(total[half]) : 0;
#pragma unroll
    for (int tile = 0; tile < kValueTiles; ++tile) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int column = tile * 8 + mixed[tile].column(i);
        if (column < here) {
          out[(image + row) * p.values + first_value + column] =
              static_cast<T>(answered ? mixed[tile].x[i] / total[half] : A(0));
        }
      }
    }
  }
}

// The gradients of rows. With `Keys` the rows are keys and the columns corrupted tokens, else the contrary. With
// score = row * column, weight = 2 ** (score * temperature - log_sum) and the gradient of score from that of the answers,
// a row's gradient is sum over columns of grad_score * column, and for values, sum of weight * grad.
template <typename T, typename A, bool TensorCores, bool Keys, int Warps, int ColumnTiles>
__global__ void __launch_bounds__(Warps * 32)
    backward_kernel(Problem<T, A> p, const T* __restrict__ grad, const T* __restrict__ out,
                    const A* __restrict__ log_sum, A* __restrict__ along, T* __restrict__ grad_row,
                    T* __restrict__ grad_value, A* __restrict__ grad_temperature) {
  constexpr int rows = 16 * Warps, columns = 8 * ColumnTiles, part = kGradTiles * 8;
  const int batch = blockIdx.y, first = blockIdx.x * rows, first_channel = blockIdx.z * part;
  const int* order = p.order + static_cast<int64_t>(batch) * p.tokens;
  const int corrupted = p.count[batch], keys = p.all_keys ? p.tokens : p.tokens - corrupted;
  const int row_count = Keys ? keys : corrupted, column_count = Keys ? corrupted : keys;
  const int64_t image = static_cast<int64_t>(batch) * p.tokens;
  const int channels_here = min(part, p.channels - first_channel), values_here = min(part, p.values - first_channel);

  const int depth = round_up(p.channels, 16), stride = round_up(depth, part) + kPad;
  const int value_depth = round_up(p.values, 16), value_stride = round_up(value_depth, part) + kPad;
  constexpr int weight_stride = columns + kPad;
  Arena arena{dynamic_shared_memory<unsigned char>()};
  T* row_vector = arena.take<T>(rows * stride);
  T* row_value = arena.take<T>(rows * value_stride);
  T* column_vector = arena.take<T>(columns * stride);
  T* column_value = arena.take<T>(columns * value_stride);
  T* grad_score = arena.take<T>(rows * weight_stride);
  T* weight = arena.take<T>(rows * weight_stride);
  A* inverse = arena.take<A>(rows);
  A* shift = arena.take<A>(Keys ? columns : rows);  // log_sum of the corrupted tokens
  A* delta = arena.take<A>(Keys ? columns : rows);  // <grad, out> of them
  A* share = arena.take<A>(rows);
  int* token = arena.take<int>(rows);
  int* column_token = arena.take<int>(columns);
  // Vectors and values of rows and of columns: a query goes with the gradient of its answer, a key with its value.
  const T* row_vectors = (Keys ? p.key : p.query) + image * p.channels;
  const T* row_values = (Keys ? p.value : grad) + image * p.values;
  const T* column_vectors = (Keys ? p.query : p.key) + image * p.channels;
  const T* column_values = (Keys ? grad : p.value) + image * p.values;

  for (int i = threadIdx.x; i < rows; i += blockDim.x) {
    token[i] = Keys ? p.key_token(order, corrupted, first + i) : p.query_token(order, corrupted, first + i);
  }
  // Tokens that are not asked about have no gradient. Of keys these are the corrupted ones, listed before them.
  for (int i = threadIdx.x; i < rows * part; i += blockDim.x) {
    const int place = first + i / part, c = i % part;
    if (place < row_count || place >= p.tokens) continue;
    const int64_t at = image + (Keys ? order[place - row_count] : order[place]);
    if (c < channels_here) grad_row[at * p.channels + first_channel + c] = static_cast<T>(0.f);
    if (Keys && c < values_here) grad_value[at * p.values + first_channel + c] = static_cast<T>(0.f);
  }
  if (first >= row_count) {
    if (!Keys && blockIdx.z == 0 && threadIdx.x == 0) grad_temperature[batch * gridDim.x + blockIdx.x] = 0;
    return;
  }
  __syncthreads();
  load_rows(row_vectors, p.channels, token, rows, p.channels, stride - kPad, p.aligned, row_vector, stride);
  load_rows(row_values, p.values, token, rows, p.values, value_stride - kPad, p.aligned, row_value, value_stride);
  finish_loads();
  make_unit<T, A>(row_vector, stride, rows, p.channels, inverse);
  if (!Keys) {
    for (int r = threadIdx.x / 32; r < rows; r += Warps) {
      A sum = 0;
      for (int c = warp_lane(); c < p.values && token[r] >= 0; c += 32) {
        sum += static_cast<A>(row_value[r * value_stride + c]) *
               static_cast<A>(out[(image + token[r]) * p.values + c]);
      }
      sum = warp_reduce<Sum>(sum);
      if (warp_lane() == 0) {
        delta[r] = sum;
        shift[r] = token[r] >= 0 ? log_sum[image + token[r]] : INFINITY;
        if (token[r] >= 0 && blockIdx.z == 0) along[image + token[r]] = sum;
      }
    }
  }

  const A temperature = p.temperature_here();
  const int warp_row = threadIdx.x / 32 * 16;
  Accumulator<A> sum[kGradTiles], sum_value[Keys ? kGradTiles : 1];
  A projected[2] = {0, 0};  // sum of grad_score * score: the part of a row's gradient along itself
  for (int first_column = 0; first_column < column_count; first_column += columns) {
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
      const int other = Keys ? p.query_token(order, corrupted, first_column + i)
                             : p.key_token(order, corrupted, first_column + i);
      column_token[i] = other;
      if (Keys) {
        shift[i] = other >= 0 ? log_sum[image + other] : INFINITY;
        delta[i] = other >= 0 ? along[image + other] : 0;
      }
    }
    __syncthreads();
    load_rows(column_vectors, p.channels, column_token, columns, p.channels, stride - kPad, p.aligned, column_vector, stride);
    load_rows(column_values, p.values, column_token, columns, p.values, value_stride - kPad, p.aligned, column_value,
              value_stride);
    finish_loads();
    make_unit<T, A>(column_vector, stride, columns, p.channels, static_cast<A*>(nullptr));
    __syncthreads();

    Accumulator<A> score[ColumnTiles], grad_weight[ColumnTiles];
    warp_product<TensorCores, true>(score, row_vector + warp_row * stride, stride, column_vector, stride, depth);
    warp_product<TensorCores, true>(grad_weight, row_value + warp_row * value_stride, value_stride, column_value,
                                    value_stride, value_depth);
#pragma unroll
    for (int tile = 0; tile < ColumnTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = warp_row + score[tile].row(i), column = tile * 8 + score[tile].column(i);
        const int of_query = Keys ? column : row;
        const bool valid = token[row] >= 0 && column_token[column] >= 0;
        const A power = valid ? exp2(score[tile].x[i] * temperature * A(kLog2E) - shift[of_query]) : A(0);
        const A gradient = valid ? power * (grad_weight[tile].x[i] - delta[of_query]) : A(0);
        projected[i / 2] += gradient * score[tile].x[i];
        grad_score[row * weight_stride + column] = static_cast<T>(gradient);
        if (Keys) weight[row * weight_stride + column] = static_cast<T>(power);
      }
    }
    __syncwarp();
    warp_product<TensorCores, false>(sum, grad_score + warp_row * weight_stride, weight_stride,
                                     column_vector + min(first_channel, stride - kPad - part), stride, columns);
    if constexpr (Keys) {
      warp_product<TensorCores, false>(sum_value, weight + warp_row * weight_stride, weight_stride,
                                       column_value + min(first_channel, value_stride - kPad - part), value_stride,
                                       columns);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    projected[half] = sum_of_row(projected[half]);
    const int r = warp_row + sum[0].row(2 * half);
    if (!Keys && warp_lane() % 4 == 0) share[r] = projected[half];
    if (token[r] < 0) continue;
    // Rows shorter than kMinNorm are scaled by a constant: nothing is projected out.
    const A project = inverse[r] < A(1 / kMinNorm) ? projected[half] : A(0);
#pragma unroll
    for (int tile = 0; tile < kGradTiles; ++tile) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int column = tile * 8 + sum[tile].column(i);
        if (column < channels_here) {
          const A unit = static_cast<A>(row_vector[r * stride + first_channel + column]);
          grad_row[(image + token[r]) * p.channels + first_channel + column] =
              static_cast<T>((sum[tile].x[i] - unit * project) * temperature * inverse[r]);
        }
        if constexpr (Keys) {
          if (column < values_here) {
            grad_value[(image + token[r]) * p.values + first_channel + column] = static_cast<T>(sum_value[tile].x[i]);
          }
        }
      }
    }
  }
  if (!Keys && blockIdx.z == 0) {
    __syncthreads();
    if (threadIdx.x == 0) {
      A all = 0;
      for (int r = 0; r < rows; ++r) all += token[r] >= 0 ? share[r] : A(0);
      grad_temperature[batch * gridDim.x + blockIdx.x] = all;
    }
  }
}

}  // namespace showface
