// Tiles of tokens in shared memory.
#pragma once

#include "../common/tensors.h"
#include "mma.h"
#include "shared_memory.h"
#include "warp.h"

namespace showface {

constexpr int kThreads = 128;  // Threads of an attention block.

// Stride, in elements, of rows of `width` elements in shared memory. Rows are padded to a multiple of 16 elements for
// the matrix products, plus 16 bytes so that rows read together lie in different banks.
template <typename T>
C10_HOST_DEVICE constexpr int row_stride(int64_t width) {
  return static_cast<int>(round_up(width, 16) + 16 / sizeof(T));
}

// Start to copy rows `token` of `from` (stride row_size) into a tile: `width` elements, then zeros up to `padded`. Rows
// of token -1 become zeros. Eight threads per row.
template <typename T>
__device__ __forceinline__ void load_rows(const T* from, int row_size, const int* token, int rows, int width,
                                          int padded, bool aligned, T* tile, int stride) {
  constexpr int vector = 16 / sizeof(T);
  const int lane = threadIdx.x % 8;
  for (int r = threadIdx.x / 8; r < rows; r += kThreads / 8) {
    const bool exists = token[r] >= 0;
    const T* const row = from + (exists ? static_cast<int64_t>(token[r]) * row_size : 0);
    T* const to = tile + r * stride;
    if (aligned) {
      for (int c = lane * vector; c < padded; c += 8 * vector) {
        const bool valid = exists && c < width;
        copy_16_bytes(to + c, valid ? row + c : from, valid);
      }
    } else {
      for (int c = lane; c < padded; c += 8) to[c] = exists && c < width ? row[c] : static_cast<T>(0.f);
    }
  }
}

// Sum over neighbouring lanes, a power of 2.
template <int Lanes, typename A>
__device__ A sum_over(A x) {
#pragma unroll
  for (int by = 1; by < Lanes; by *= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
  return x;
}

// Sum or maximum over the four neighbouring lanes that hold one row of an accumulator.
template <typename A>
__device__ A sum_of_row(A x) {
  return sum_over<4>(x);
}
template <typename A>
__device__ A max_of_row(A x) {
  x = Max<A>::of(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return Max<A>::of(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Scale the rows of a tile to unit length. `inverse`, unless null, gets 1 / norm of each row. Elements beyond the width
// must be zeros. `rows` is a multiple of 16, so that whole warps take part. Eight lanes read 128 bytes of a row at
// once, which are in different banks for any stride.
template <typename T, typename A>
__device__ __forceinline__ void make_unit(T* tile, int stride, int rows, int depth, A* inverse) {
  constexpr int vector = 16 / sizeof(T);
  struct alignas(16) Vector {
    T x[vector];
  };
  constexpr int lanes = 8;
  const int lane = threadIdx.x % lanes;
  for (int r = threadIdx.x / lanes; r < rows; r += kThreads / lanes) {
    auto* const row = reinterpret_cast<Vector*>(tile + r * stride);
    A square = 0;
    for (int i = lane; i < depth / vector; i += lanes) {
      const Vector numbers = row[i];
#pragma unroll
      for (const T x : numbers.x) square += static_cast<A>(x) * static_cast<A>(x);
    }
    const A scale = A(1) / Max<A>::of(sqrt(sum_over<lanes>(square)), A(kMinNorm));
    for (int i = lane; i < depth / vector; i += lanes) {
      Vector numbers = row[i];
#pragma unroll
      for (T& x : numbers.x) x = static_cast<T>(static_cast<A>(x) * scale);
      row[i] = numbers;
    }
    if (inverse != nullptr && lane == 0) inverse[r] = scale;
  }
}

// Process the column tiles begin ... end - 1. The copy of the first one has been started by the caller. With two stages
// the next tile is copied while the current one is multiplied. With one stage it is copied afterwards, into the same
// place.
//   fetch(step)     reads the token indices of a tile from global memory into registers, two steps ahead.
//   list(step)      stores them in shared memory, which has room for the lists of two tiles.
//   load(step)      starts the copies of the tile's rows.
//   prepare(step), multiply(step)  work on the tile once the copies are visible to all threads.
template <typename Fetch, typename List, typename Load, typename Prepare, typename Multiply>
__device__ __forceinline__ void pipeline(int begin, int end, int stages, Fetch fetch, List list, Load load,
                                         Prepare prepare, Multiply multiply) {
  if (begin + 1 < end) fetch(begin + 1);
  for (int step = begin; step < end; ++step) {
    const bool more = step + 1 < end;
    copy_wait();
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

// A bump allocator over the dynamic shared memory, aligned to 16 bytes.
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
