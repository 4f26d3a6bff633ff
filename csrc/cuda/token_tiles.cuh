// Tiles of tokens in shared memory.
#pragma once

#include "../common/tensors.h"
#include "fragment.h"
#include "shared_memory.h"
#include "warp.h"

namespace showface {

// How far apart rows of `width` numbers lie in shared memory: products read 16 at a time, and 16 bytes more keep the
// rows that a warp reads at once in different banks.
template <typename T>
C10_HOST_DEVICE constexpr int row_stride(int64_t width) {
  return static_cast<int>(round_up(width, 16) + 16 / sizeof(T));
}

// Start to copy `width` numbers of rows that lie `row_size` apart into a tile, zeros for the tokens -1 and up to `padded`.
template <typename T>
__device__ __forceinline__ void load_rows(const T* from, int row_size, const int* token, int rows, int width, int padded,
                                          bool aligned, T* tile, int stride) {
  constexpr int vector = 16 / sizeof(T);
  if (aligned) {
    const int parts = padded / vector;
    for (int i = threadIdx.x; i < rows * parts; i += blockDim.x) {
      const int r = i / parts, c = i % parts * vector;
      const bool valid = token[r] >= 0 && c < width;
      copy_async<16>(tile + r * stride + c, from + (valid ? static_cast<int64_t>(token[r]) * row_size + c : 0), valid);
    }
  } else {
    for (int i = threadIdx.x; i < rows * padded; i += blockDim.x) {
      const int r = i / padded, c = i % padded;
      const bool valid = token[r] >= 0 && c < width;
      tile[r * stride + c] = valid ? from[static_cast<int64_t>(token[r]) * row_size + c] : static_cast<T>(0.f);
    }
  }
}

// Bring a tile's rows to unit length; `inverse` gets one over their lengths. A warp takes a row.
template <bool TensorCores, typename T, typename A>
__device__ void make_unit(T* tile, int stride, int rows, int width, A* inverse) {
  for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
    A square = 0;
    for (int c = warp_lane(); c < width; c += 32) {
      const A x = static_cast<A>(tile[r * stride + c]);
      square += x * x;
    }
    square = warp_reduce<Sum>(square);
    const A scale = A(1) / Max<A>::of(sqrt(square), A(kMinNorm));
    for (int c = warp_lane(); c < width; c += 32) {
      tile[r * stride + c] = as_operand<TensorCores, T>(static_cast<A>(tile[r * stride + c]) * scale);
    }
    if (inverse != nullptr && warp_lane() == 0) inverse[r] = scale;
  }
}

// Goes through the tiles begin ... end - 1, of which the first is on its way. While a tile is multiplied the next one is
// loaded, with two stages; with one it is loaded after that, where it lies. list(step) writes down which tokens are
// in a tile (there is room for two such lists), load(step) starts to copy them, and when they are there for all
// threads, prepare(step) and multiply(step) work on them.
template <typename List, typename Load, typename Prepare, typename Multiply>
__device__ __forceinline__ void pipeline(int begin, int end, int stages, List list, Load load, Prepare prepare,
                                         Multiply multiply) {
  for (int step = begin; step < end; ++step) {
    const bool more = step + 1 < end;
    copy_wait<0>();
    __syncthreads();
    if (more) list(step + 1);
    prepare(step);
    __syncthreads();
    if (more && stages == 2) load(step + 1);
    multiply(step);
    if (more && stages == 1) {
      __syncthreads();
      load(step + 1);
    }
  }
}

// Sums over the four lanes that hold a row of an accumulator.
template <typename A>
__device__ A sum_of_row(A x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
template <typename A>
__device__ A max_of_row(A x) {
  x = Max<A>::of(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return Max<A>::of(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// A bump allocator over the launch's shared memory, 16 bytes at a time.
struct Arena {
  unsigned char* at;
  template <typename X>
  __device__ X* take(int count) {
    X* here = reinterpret_cast<X*>(at);
    at += round_up(count * sizeof(X), 16);
    return here;
  }
};

}  // namespace showface
