// Lists of corrupted and known tokens, and tiles of tokens in shared memory.
#pragma once

#include "../common/tensors.h"
#include "fragment.h"
#include "shared_memory.h"
#include "warp.h"

namespace showface {

constexpr int kListThreads = 256;
constexpr int kPad = 8;  // between rows in shared memory, against bank conflicts

struct ListShared {
  int of_warp[kListThreads / 32];
};

// order (B, N): the corrupted tokens of an image, then its known ones, both in their order. count (B): how many are
// corrupted. One block for each image; a thread takes tokens that lie together.
static __global__ void __launch_bounds__(kListThreads)
    list_tokens_kernel(const bool* __restrict__ hole, int* __restrict__ order, int* __restrict__ count, int tokens) {
  auto& [of_warp] = shared_memory<ListShared>();
  hole += static_cast<int64_t>(blockIdx.x) * tokens;
  order += static_cast<int64_t>(blockIdx.x) * tokens;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int each = (tokens + kListThreads - 1) / kListThreads;
  const int begin = min(tokens, static_cast<int>(threadIdx.x) * each), end = min(tokens, begin + each);
  int mine = 0;
  for (int i = begin; i < end; ++i) mine += hole[i];
  int before = mine;  // up to and with this thread, within the warp
  for (unsigned by = 1; by < 32; by *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, before, by);
    if (lane >= static_cast<int>(by)) before += below;
  }
  if (lane == 31) of_warp[warp] = before;
  __syncthreads();
  int corrupted = 0;
  before -= mine;
  for (int w = 0; w < kListThreads / 32; ++w) {
    if (w < warp) before += of_warp[w];
    corrupted += of_warp[w];
  }
  for (int i = begin; i < end; ++i) {
    if (hole[i]) {
      order[before++] = i;
    } else {
      order[corrupted + i - before] = i;
    }
  }
  if (threadIdx.x == 0) count[blockIdx.x] = corrupted;
}

// Start to copy `width` numbers of rows that lie `row_size` apart into a tile, zeros for the tokens -1 and up to `padded`.
template <typename T>
__device__ void load_rows(const T* from, int row_size, const int* token, int rows, int width, int padded, bool aligned,
                          T* tile, int stride) {
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

__device__ inline void finish_loads() {
  copy_commit();
  copy_wait<0>();
  __syncthreads();
}

// Bring a tile's rows to unit length; `inverse` gets one over their lengths. A warp takes a row.
template <typename T, typename A>
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
      tile[r * stride + c] = static_cast<T>(static_cast<A>(tile[r * stride + c]) * scale);
    }
    if (inverse != nullptr && warp_lane() == 0) inverse[r] = scale;
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
