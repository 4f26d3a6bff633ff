// Tiles of tokens in shared memory.
#pragma once

#include "../common/tensors.h"
#include "fragment.h"
#include "shared_memory.h"
#include "warp.h"

namespace showface {

constexpr int kThreads = 128;  // of a block that works on tiles

// How far apart rows of `width` numbers lie in shared memory: products read 16 at a time, and 16 bytes more keep the
// rows that a warp reads at once in different banks.
template <typename T>
C10_HOST_DEVICE constexpr int row_stride(int64_t width) {
  return static_cast<int>(round_up(width, 16) + 16 / sizeof(T));
}

// Start to copy `width` numbers of rows that lie `row_size` apart into a tile, zeros for the tokens -1 and up to `padded`.
// Eight threads take a row.
template <typename T>
__device__ __forceinline__ void load_rows(const T* from, int row_size, const int* token, int rows, int width, int padded,
                                          bool aligned, T* tile, int stride) {
  constexpr int vector = 16 / sizeof(T);
  const int lane = threadIdx.x % 8;
  for (int r = threadIdx.x / 8; r < rows; r += kThreads / 8) {
    const bool exists = token[r] >= 0;
    const T* const row = from + (exists ? static_cast<int64_t>(token[r]) * row_size : 0);
    T* const to = tile + r * stride;
    if (aligned) {
      for (int c = lane * vector; c < padded; c += 8 * vector) {
        const bool valid = exists && c < width;
        copy_async<16>(to + c, valid ? row + c : from, valid);
      }
    } else {
      for (int c = lane; c < padded; c += 8) to[c] = exists && c < width ? row[c] : static_cast<T>(0.f);
    }
  }
}

// Sums over four lanes that follow one another: those that hold a row of an accumulator, or share a row as below.
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

// Bring a tile's rows to unit length; `inverse` gets one over their lengths. Four lanes take a row, whose numbers past its
// width are zeros. The rows are a multiple of 8, so that whole warps work.
template <bool TensorCores, typename T, typename A>
__device__ __forceinline__ void make_unit(T* tile, int stride, int rows, int depth, A* inverse) {
  constexpr int vector = 16 / sizeof(T);
  struct alignas(16) Vector { T x[vector]; };
  const int lane = threadIdx.x % 4;
  for (int r = threadIdx.x / 4; r < rows; r += kThreads / 4) {
    auto* const row = reinterpret_cast<Vector*>(tile + r * stride);
    A square = 0;
    for (int i = lane; i < depth / vector; i += 4) {
      const Vector numbers = row[i];
#pragma unroll
      for (const T x : numbers.x) square += static_cast<A>(x) * static_cast<A>(x);
    }
    const A scale = A(1) / Max<A>::of(sqrt(sum_of_row(square)), A(kMinNorm));
    for (int i = lane; i < depth / vector; i += 4) {
      Vector numbers = row[i];
#pragma unroll
      for (T& x : numbers.x) x = as_operand<TensorCores, T>(static_cast<A>(x) * scale);
      row[i] = numbers;
    }
    if (inverse != nullptr && lane == 0) inverse[r] = scale;
  }
}

// Goes through the tiles begin ... end - 1, of which the first is on its way. While a tile is multiplied the next one is
// loaded, with two stages; with one it is loaded after that, where it lies. list(step) writes down which tokens are
// in a tile (there is room for two such lists), from what fetch(step) has read long before; load(step) starts to copy
// them, and when they are there for all threads, prepare(step) and multiply(step) work on them.
template <typename Fetch, typename List, typename Load, typename Prepare, typename Multiply>
__device__ __forceinline__ void pipeline(int begin, int end, int stages, Fetch fetch, List list, Load load,
                                         Prepare prepare, Multiply multiply) {
  if (begin + 1 < end) fetch(begin + 1);
  for (int step = begin; step < end; ++step) {
    const bool more = step + 1 < end;
    copy_wait<0>();
    __syncthreads();
    if (more) list(step + 1);
    prepare(step);
    __syncthreads();
    if (more && stages == 2) load(step + 1);
    if (step + 2 < end) fetch(step + 2);
    multiply(step);
    if (more && stages == 1) {
      __syncthreads();
      load(step + 1);
    }
  }
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
