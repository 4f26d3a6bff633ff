// Small matrix products by a warp, on tensor cores: D (16, 8) += A (16, K) B (K, 8), accumulated in float32.
//
// K is 16 for float16 and bfloat16, 8 for float (as tf32: 10 bits of mantissa). Each lane holds a few elements; which
// ones is fixed by the mma.sync instruction (sm_80 and later), and said by `row` and `column` for the result.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace showface {

__device__ __forceinline__ int warp_lane() { return static_cast<int>(threadIdx.x % 32); }

template <typename T>
struct Fragment {
  static constexpr int kDepth = 32 / sizeof(T);          // K
  static constexpr int kPacked = 4 / sizeof(T);          // elements in a register
  static_assert(kDepth == 16 || kDepth == 8, "fragments are of float16, bfloat16 or float");

  struct A { uint32_t x[4]; };
  struct B { uint32_t x[2]; };

  static __device__ __forceinline__ uint32_t pack(const T* at, int stride) {
    if constexpr (kPacked == 1) {
      uint32_t bits;
      memcpy(&bits, at, 4);
      return bits;
    } else {
      uint16_t low, high;
      memcpy(&low, at, 2);
      memcpy(&high, at + stride, 2);
      return low | static_cast<uint32_t>(high) << 16;
    }
  }

  // A from `tile[row * stride + k]`.
  static __device__ __forceinline__ A load_a(const T* tile, int stride) {
    const T* at = tile + warp_lane() / 4 * stride + warp_lane() % 4 * kPacked;
    return {{pack(at, 1), pack(at + 8 * stride, 1), pack(at + kDepth / 2, 1), pack(at + 8 * stride + kDepth / 2, 1)}};
  }
  // B from `tile[column * stride + k]`: products of the rows of two matrices.
  static __device__ __forceinline__ B load_b_rows(const T* tile, int stride) {
    const T* at = tile + warp_lane() / 4 * stride + warp_lane() % 4 * kPacked;
    return {{pack(at, 1), pack(at + kDepth / 2, 1)}};
  }
  // B from `tile[k * stride + column]`: the ordinary product of two matrices.
  static __device__ __forceinline__ B load_b(const T* tile, int stride) {
    const T* at = tile + warp_lane() % 4 * kPacked * stride + warp_lane() / 4;
    return {{pack(at, stride), pack(at + kDepth / 2 * stride, stride)}};
  }
};

// A number as an operand of products on tensor cores (or without): rounded to T, or to tf32, since the chip would cut off
// what tf32 doesn't hold and so make every product smaller.
template <bool TensorCores, typename T, typename A>
__device__ __forceinline__ T as_operand(A x) {
  T rounded = static_cast<T>(x);
  if constexpr (TensorCores && std::is_same_v<T, float>) {
    uint32_t bits;
    memcpy(&bits, &rounded, 4);
    bits = (bits + 0x1000u) & ~0x1fffu;  // half of the last bit that counts, then only those that do
    memcpy(&rounded, &bits, 4);
  }
  return rounded;
}

template <typename A>
struct Accumulator {
  A x[4] = {0, 0, 0, 0};

  // The place of x[i] in D.
  static __device__ __forceinline__ int row(int i) { return warp_lane() / 4 + i / 2 * 8; }
  static __device__ __forceinline__ int column(int i) { return warp_lane() % 4 * 2 + i % 2; }
};

#ifdef SHOWFACE_CUDA_ON_CPU
// The element of a fragment's register, as the chip reads it.
template <typename T>
float unpack(uint32_t bits, int index) {
  if constexpr (std::is_same_v<T, float>) {
    bits &= ~0x1fffu;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  } else {
    const uint16_t half = static_cast<uint16_t>(bits >> 16 * index);
    T value;
    memcpy(&value, &half, 2);
    return static_cast<float>(value);
  }
}
#endif

// d += a b, by all 32 lanes together.
template <typename T>
__device__ __forceinline__ void mma(Accumulator<float>& d, const typename Fragment<T>::A& a, const typename Fragment<T>::B& b) {
#ifdef SHOWFACE_CUDA_ON_CPU
  struct Given { typename Fragment<T>::A a; typename Fragment<T>::B b; } given{a, b};
  const auto* all = cuda_on_cpu::exchange("mma", 0xffffffffu, &given, sizeof(given));
  constexpr int packed = Fragment<T>::kPacked;
  for (int i = 0; i < 4; ++i) {
    const int row = Accumulator<float>::row(i), column = Accumulator<float>::column(i);
    for (int k = 0; k < Fragment<T>::kDepth; ++k) {
      const int half = k / (Fragment<T>::kDepth / 2), lane = k % (Fragment<T>::kDepth / 2) / packed;
      Given of_a, of_b;
      memcpy(&of_a, all[row % 8 * 4 + lane].data(), sizeof(Given));
      memcpy(&of_b, all[column * 4 + lane].data(), sizeof(Given));
      d.x[i] += unpack<T>(of_a.a.x[half * 2 + row / 8], k % packed) * unpack<T>(of_b.b.x[half], k % packed);
    }
  }
#else
#define SHOWFACE_MMA(shape_and_types)                                                                       \
  asm volatile("mma.sync.aligned." shape_and_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"  \
               : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])                                      \
               : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]))
  if constexpr (std::is_same_v<T, float>) {
    SHOWFACE_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    SHOWFACE_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    SHOWFACE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  }
#undef SHOWFACE_MMA
#endif
}

// d (16, 8 Tiles) += a (16, depth) times b, by a warp. Row r of a is a[r * a_stride ...]. With `Rows`, b is given by the
// rows of its transpose, b[column * b_stride + k]; else by its own, b[k * b_stride + column]. `depth` is a multiple of 16.
// Only the first `tiles` tiles are made. Without `TensorCores` the products are ordinary multiply-adds in the type A.
template <bool TensorCores, bool Rows, typename T, typename A, int Tiles>
__device__ __forceinline__ void warp_product(Accumulator<A> (&d)[Tiles], const T* a, int a_stride, const T* b,
                                             int b_stride, int depth, int tiles = Tiles) {
  if constexpr (TensorCores) {
    for (int k = 0; k < depth; k += Fragment<T>::kDepth) {
      const auto left = Fragment<T>::load_a(a + k, a_stride);
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        if (tile >= tiles) continue;
        const auto right = Rows ? Fragment<T>::load_b_rows(b + tile * 8 * b_stride + k, b_stride)
                                : Fragment<T>::load_b(b + k * b_stride + tile * 8, b_stride);
        mma<T>(d[tile], left, right);
      }
    }
  } else {
    const int row = Accumulator<A>::row(0), column = Accumulator<A>::column(0);
    const int step = Rows ? 1 : b_stride, across = Rows ? b_stride : 1;
    for (int k = 0; k < depth; ++k) {
      const A upper = static_cast<A>(a[row * a_stride + k]), lower = static_cast<A>(a[(row + 8) * a_stride + k]);
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        if (tile >= tiles) continue;
        const T* at = b + k * step + (tile * 8 + column) * across;
        const A left = static_cast<A>(at[0]), right = static_cast<A>(at[across]);
        d[tile].x[0] += upper * left;
        d[tile].x[1] += upper * right;
        d[tile].x[2] += lower * left;
        d[tile].x[3] += lower * right;
      }
    }
  }
}

}  // namespace showface
