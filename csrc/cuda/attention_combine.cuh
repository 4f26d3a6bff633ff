// Kernels that combine the partial results of splits, and the kernel that blends sums into keys.
//
//   kernel               pointer  null when
//   combine_kernel       out      only lse is wanted (then values is 0)
//   add_partials_kernel  second   size == first_size (there is one result)
//   blend_kernel         mass     the summed weights are not wanted
//
// All other pointers are required.
#pragma once

#include "token_tiles.cuh"

namespace showface {

// Combine the outputs of all splits, weighted by their log-sum-exp (base 2): partial (splits, queries, V), partial_lse
// (splits, queries). One warp per query.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const A* __restrict__ partial, const A* __restrict__ partial_lse, int splits, int queries,
                   int values, T* __restrict__ out, A* __restrict__ lse) {
  const int lane = warp_lane();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= queries) return;
  const A mine = lane < splits ? partial_lse[static_cast<int64_t>(lane) * queries + row] : -INFINITY;
  const A row_max = warp_reduce<Max>(mine);
  const A weight = mine == -INFINITY ? A(0) : exp2(mine - row_max);
  const A row_sum = warp_reduce<Sum>(weight);
  const bool has_keys = row_sum != 0;  // true for NaN
  if (lane == 0) lse[row] = has_keys ? row_max + log2(row_sum) : A(0);
  for (int first = 0; first < values; first += 32) {
    const int c = first + lane;
    A acc = 0;
    for (int split = 0; split < splits; ++split) {
      const A part = __shfl_sync(0xffffffffu, weight, split);
      // A split without keys did not write its partial result.
      if (part != 0 && c < values) acc += part * partial[(static_cast<int64_t>(split) * queries + row) * values + c];
    }
    if (c < values) out[row * values + c] = static_cast<T>(has_keys ? acc / row_sum : A(0));
  }
}

// Sum partial (splits, size) over the splits. The first first_size elements go to `first`, the rest to `second`.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const A* __restrict__ partial, int splits, int64_t size, int64_t first_size,
                        T* __restrict__ first, T* __restrict__ second) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  A sum = 0;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + i];
  (i < first_size ? first[i] : second[i - first_size]) = static_cast<T>(sum);
}

// One element of a key after a write with this weight and weighted sum. With weight 0 the bits do not change.
template <typename T, typename A>
__device__ __forceinline__ T blend(T old, A weight, A sum, A log_keep) {
  const A wide = static_cast<A>(old);
  return weight > 0 ? static_cast<T>(wide - expm1(weight * log_keep) * (sum / weight - wide)) : old;
}

// Blend sums into keys. sum (splits, keys, C) and weight (splits, keys) are partial results, with a stride of `size`
// elements between splits. mass receives the weight summed over the splits. One warp per key.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads, 4)
    blend_kernel(const T* __restrict__ key, const A* __restrict__ sum, const A* __restrict__ weight, int splits,
                 int64_t size, A log_keep, int64_t keys, int channels, T* __restrict__ blended, T* __restrict__ mass) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= keys) return;
  A total_weight = 0;
  for (int split = 0; split < splits; ++split) total_weight += weight[split * size + row];
  if (mass != nullptr && warp_lane() == 0) mass[row] = static_cast<T>(total_weight);
  for (int64_t i = row * channels + warp_lane(); i < (row + 1) * channels; i += 32) {
    A total = 0;
    for (int split = 0; split < splits; ++split) total += sum[split * size + i];
    blended[i] = blend(key[i], total_weight, total, log_keep);
  }
}

}  // namespace showface
