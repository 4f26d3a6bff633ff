// Matrix products of a warp on tensor cores: D (16, 8) += A (16, K) B (K, 8), accumulated in float32.
//
// K is 16 for float16 and bfloat16, and 8 for float (as tf32, with 10 bits of mantissa). Each lane holds some elements.
// The mma.sync instruction (sm_80 and later) fixes which; for D, `row` and `column` of Accumulator return the place.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace showface {

__device__ __forceinline__ int warp_lane() { return static_cast<int>(threadIdx.x % 32); }

// Load four matrices of 8 rows of 16 bytes from shared memory (ldmatrix). Lane 8 i + j passes the address of row j of
// matrix i, aligned to 16 bytes. x[i] gets 4 bytes of matrix i: word lane % 4 of row lane / 4. With Transposed the
// elements have 2 bytes, and x[i] gets column lane / 4 of rows 2 (lane % 4) and 2 (lane % 4) + 1.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], const void* row) {
#ifdef SHOWFACE_CUDA_ON_CPU
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw cuda_on_cpu::KernelError("ldmatrix: a row is not aligned");
  // Each lane passes on the bytes that it finds when it arrives. What other lanes write later is not seen, as on a GPU.
  const auto* all = cuda_on_cpu::exchange("ldmatrix", 0xffffffffu, row, 16);
  const int lane = warp_lane();
  const auto from = [&](int matrix, int row) { return all[8 * matrix + row].data(); };
  for (int i = 0; i < 4; ++i) {
    if (Transposed) {
      uint16_t halves[2];
      for (int j = 0; j < 2; ++j) memcpy(&halves[j], from(i, lane % 4 * 2 + j) + lane / 4 * 2, 2);
      memcpy(&x[i], halves, 4);
    } else {
      memcpy(&x[i], from(i, lane / 4) + lane % 4 * 4, 4);
    }
  }
#else
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
  }
#endif
}

// Round a float to tf32, to the nearest value and away from zero at a tie; NaN stays NaN. The chip would truncate,
// which biases every product towards zero.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
#ifdef SHOWFACE_CUDA_ON_CPU
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? 0x7fffffffu : (bits + 0x1000u) & ~0x1fffu;
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#endif
}

// The operands of mma.sync, loaded from tiles in shared memory whose rows are aligned to 16 bytes. Floats are rounded
// to tf32 here, so every operand is.
template <typename T>
struct Fragment {
  static constexpr int kDepth = 32 / sizeof(T);  // K
  static constexpr int kPacked = 4 / sizeof(T);  // Elements per register.
  static_assert(kDepth == 16 || kDepth == 8, "fragments are of float16, bfloat16 or float");

  struct A {
    uint32_t x[4];
  };
  struct B {
    uint32_t x[2];
  };

  // A from `tile[row * stride + k]`.
  static __device__ __forceinline__ A load_a(const T* tile, int stride) {
    A a;
    load_matrices<false>(a.x, tile + warp_lane() % 16 * stride + warp_lane() / 16 * (kDepth / 2));
    round(a.x);
    return a;
  }
  // Two B operands, for columns 0-7 and 8-15. With Rows, the tile holds B transposed, tile[column * stride + k], for
  // products A B^T. Otherwise it holds B, tile[k * stride + column], and A must be stored as stored_column says.
  template <bool Rows>
  static __device__ __forceinline__ void load_b(B (&b)[2], const T* tile, int stride) {
    const int lane = warp_lane();
    uint32_t x[4];
    if constexpr (Rows) {
      load_matrices<false>(x, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * (kDepth / 2));
    } else if constexpr (kPacked == 2) {
      load_matrices<true>(x, tile + lane % 16 * stride + lane / 16 * 8);
    } else {
      for (int i = 0; i < 4; ++i) memcpy(&x[i], tile + b_row(lane, i) * stride + b_column(lane, i), 4);
    }
    round(x);
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }

  // Row and column of register i of the two B operands of floats, without Rows. A lane reads two neighbouring rows,
  // because in rows with the stride of row_stride() the lanes of a warp then read from 32 banks.
  C10_HOST_DEVICE static constexpr int b_row(int lane, int i) { return lane % 4 * 2 + i % 2; }
  C10_HOST_DEVICE static constexpr int b_column(int lane, int i) { return lane / 4 + i / 2 * 8; }

 private:
  template <int N>
  static __device__ __forceinline__ void round(uint32_t (&x)[N]) {
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (uint32_t& bits : x) bits = round_to_tf32(bits);
    }
  }
};

// Where column k of A is stored for products without Rows. Tensor cores take floats in the order of Fragment::b_row.
template <bool TensorCores, typename T>
C10_HOST_DEVICE constexpr int stored_column(int k) {
  return TensorCores && sizeof(T) == 4 ? k / 8 * 8 + k % 2 * 4 + k % 8 / 2 : k;
}

template <typename A>
struct Accumulator {
  A x[4] = {0, 0, 0, 0};

  // Row and column of x[i] in D.
  static __device__ __forceinline__ int row(int i) { return warp_lane() / 4 + i / 2 * 8; }
  static __device__ __forceinline__ int column(int i) { return warp_lane() % 4 * 2 + i % 2; }
};

#ifdef SHOWFACE_CUDA_ON_CPU
// One element of a fragment's register, with the precision that the chip uses.
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

// d += a b. All 32 lanes must call it.
template <typename T>
__device__ __forceinline__ void mma(Accumulator<float>& d, const typename Fragment<T>::A& a,
                                    const typename Fragment<T>::B& b) {
#ifdef SHOWFACE_CUDA_ON_CPU
  struct Given {
    typename Fragment<T>::A a;
    typename Fragment<T>::B b;
  } given{a, b};
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
#define SHOWFACE_MMA(shape_and_types)                                                              \
  asm("mma.sync.aligned." shape_and_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])                                     \
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

// d (16, 8 * Tiles) += a (16, depth) b (depth, 8 * Tiles), by a warp. a[r * a_stride + k] is row-major. With Rows, b
// holds the transpose, b[column * b_stride + k]; otherwise b[k * b_stride + column], and column k of a is stored in
// stored_column<TensorCores, T>(k). depth is a multiple of 16. Only the first `tiles` tiles are computed, but b is read
// up to the next even number of tiles. Without TensorCores, ordinary multiply-adds in type A are used.
template <bool TensorCores, bool Rows, typename T, typename A, int Tiles>
__device__ __forceinline__ void warp_product(Accumulator<A> (&d)[Tiles], const T* a, int a_stride, const T* b,
                                             int b_stride, int depth, int tiles = Tiles) {
  static_assert(Tiles % 2 == 0, "tiles are loaded in pairs");
  if constexpr (TensorCores) {
    for (int k = 0; k < depth; k += Fragment<T>::kDepth) {
      const auto left = Fragment<T>::load_a(a + k, a_stride);
#pragma unroll
      for (int tile = 0; tile < Tiles; tile += 2) {
        if (tile >= tiles) continue;
        typename Fragment<T>::B right[2];
        Fragment<T>::template load_b<Rows>(right, Rows ? b + tile * 8 * b_stride + k : b + k * b_stride + tile * 8,
                                           b_stride);
        mma<T>(d[tile], left, right[0]);
        if (tile + 1 < tiles) mma<T>(d[tile + 1], left, right[1]);
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
