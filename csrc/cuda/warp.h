// Reductions over the 32 threads of a warp.
#pragma once

#include <cuda_runtime.h>

namespace showface {

template <typename A>
struct Sum {
  static __device__ A of(A a, A b) { return a + b; }
};
template <typename A>
struct Max {
  static __device__ A of(A a, A b) { return a > b ? a : b; }
};

template <template <typename> class Op, typename A>
__device__ A warp_reduce(A value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value = Op<A>::of(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

// Inclusive prefix sum over the lanes of a warp.
template <typename A>
__device__ A warp_prefix_sum(A value) {
#pragma unroll
  for (unsigned by = 1; by < 32; by *= 2) {
    const A below = __shfl_up_sync(0xffffffffu, value, by);
    if (threadIdx.x % 32 >= by) value += below;
  }
  return value;
}

}  // namespace showface
