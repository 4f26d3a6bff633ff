// What becomes of sums: the shares of splits are put together, and sums blended into keys.
#pragma once

#include "token_tiles.cuh"

namespace showface {

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

// Of a number of a key, what a write of such a weight and weighted sum makes. A key without weight keeps its exact bits.
template <typename T, typename A>
__device__ __forceinline__ T blend(T old, A weight, A sum, A log_keep) {
  const A wide = static_cast<A>(old);
  return weight > 0 ? static_cast<T>(wide - expm1(weight * log_keep) * (sum / weight - wide)) : old;
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
