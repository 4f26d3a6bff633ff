// Small kernels with known results, for the tests of cuda_runtime.h and of the headers in csrc/cuda. Some are wrong on
// purpose. nvcc compiles this file too, so the same kernels can run on a GPU.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../../../csrc/cuda/mma.h"
#include "../../../csrc/cuda/shared_memory.h"
#include "../../../csrc/cuda/token_lists.cuh"

using showface::Accumulator;
using showface::Fragment;

struct Line {
  float x[64];
};

struct TwoLines {
  float first[64], second[64];
};

// out[i] = in[n - 1 - i] through shared memory.
__global__ void reverse(const float* in, float* out, int n) {
  auto& line = showface::shared_memory<Line>();
  if (threadIdx.x < n) line.x[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < n) out[threadIdx.x] = line.x[n - 1 - threadIdx.x];
}

// The same without the barrier.
__global__ void reverse_race(const float* in, float* out, int n) {
  auto& line = showface::shared_memory<Line>();
  if (threadIdx.x < n) line.x[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x < n) out[threadIdx.x] = line.x[n - 1 - threadIdx.x];
}

// A race between two barriers: a thread reads an element that another thread writes. It shows only if the order of the
// threads in the second phase changes.
__global__ void neighbour_race(const float* in, float* out, int n) {
  auto& line = showface::shared_memory<Line>();
  line.x[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  line.x[threadIdx.x] += line.x[(threadIdx.x + 1) % n];
  __syncthreads();
  out[threadIdx.x] = line.x[threadIdx.x];
}

__global__ void uninitialised(const float*, float* out, int) {
  out[threadIdx.x] = showface::shared_memory<Line>().x[threadIdx.x];
}

__global__ void read_past_end(const float* in, float* out, int n) { out[threadIdx.x] = in[threadIdx.x + 1] + n; }
__global__ void write_past_dynamic(const float* in, float* out, int n) {
  float* line = showface::dynamic_shared_memory<float>();
  line[threadIdx.x + 1] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = line[threadIdx.x];
}
__global__ void write_past_member(const float* in, float* out, int n) {
  showface::shared_memory<TwoLines>().first[threadIdx.x + 1] = in[threadIdx.x];
  out[threadIdx.x] = n;
}
__global__ void misaligned(const float* in, float* out, int) {
  const float4 four = *reinterpret_cast<const float4*>(in + 1);
  out[threadIdx.x] = four.x + four.w;
}
__global__ void lonely_barrier(const float* in, float* out, int) {
  if (threadIdx.x == 0) __syncwarp();
  out[threadIdx.x] = in[threadIdx.x];
}

// Shuffles, votes and atomics: out[0] = sum of the first warp, out[1] = how many are positive, out[2] = sum of all,
// out[3] = the last lane's prefix count, out[4 ...] = the values of the next lanes.
__global__ void collectives(const float* in, float* out, int n) {
  const float value = in[threadIdx.x];
  float sum = value;
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  const unsigned positive = __ballot_sync(0xffffffffu, value > 0);
  float count = 1;
  for (unsigned by = 1; by < 32; by *= 2) {
    const float below = __shfl_up_sync(0xffffffffu, count, by);
    if (threadIdx.x % 32 >= by) count += below;
  }
  if (threadIdx.x == 0) out[0] = sum, out[1] = __popc(positive);
  if (threadIdx.x == 31) out[3] = count;
  if (threadIdx.x < 16) {  // half a warp
    const float next = __shfl_sync(0xffffu, value, (threadIdx.x + 1) % 16);
    out[4 + threadIdx.x] = next;
  }
  if (threadIdx.x % 32 == 0) atomicAdd(out + 2, sum);
  (void)n;
}

// out = in, through asynchronous copies of 16 bytes. The last four elements are not valid and become zeros.
template <bool Wait>
__global__ void copies(const float* in, float* out, int n) {
  float* line = showface::dynamic_shared_memory<float>();
  if (threadIdx.x % 4 == 0) showface::copy_16_bytes(line + threadIdx.x, in + threadIdx.x, threadIdx.x + 4 < n);
  showface::copy_commit();
  if (Wait) showface::copy_wait();
  __syncthreads();
  out[threadIdx.x] = line[threadIdx.x];
  if (!Wait) showface::copy_wait();
}

// D = A B^T (n = 0) or A B. `in` holds A (16, K), then B with 16 columns. `out` is D (16, 16).
template <typename T, bool Wait = true>
__global__ void product(const float* in, float* out, int n) {
  constexpr int depth = Fragment<T>::kDepth;
  T* a = showface::dynamic_shared_memory<T>();
  T* b = a + 16 * depth;
  for (int i = threadIdx.x; i < 16 * depth; i += 32) {
    const int k = i % depth;
    a[i - k + (n == 0 ? k : showface::stored_column<true, T>(k))] = static_cast<T>(in[i]);
    b[i] = static_cast<T>(in[16 * depth + i]);
  }
  if (Wait) __syncwarp();
  const auto left = Fragment<T>::load_a(a, depth);
  typename Fragment<T>::B right[2];
  if (n == 0) {
    Fragment<T>::template load_b<true>(right, b, depth);
  } else {
    Fragment<T>::template load_b<false>(right, b, 16);
  }
  for (int tile = 0; tile < 2; ++tile) {
    Accumulator<float> d;
    showface::mma<T>(d, left, right[tile]);
    for (int i = 0; i < 4; ++i) out[d.row(i) * 16 + tile * 8 + d.column(i)] = d.x[i];
  }
}

// The n tokens of an image, listed by two warps: in[i] > 0 means corrupted. out holds the list, then for each token the
// number of the access, among those of its lane, in which it was first read.
struct TracedHole {
  const float* in;
  float* out;
  int* reads;
  __device__ bool operator[](int i) const {
    const float before = static_cast<float>((*reads)++);
    if (out[i] != out[i]) out[i] = before;  // it is still NaN
    return in[i] > 0;
  }
};
__global__ void list_tokens(const float* in, float* out, int n) {
  int* const of_warp = showface::dynamic_shared_memory<int>();
  int* const order = of_warp + 2;
  int reads = 0;
  showface::list_corrupted_first(TracedHole{in, out + n, &reads}, 0, n, of_warp, order);
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = static_cast<float>(order[i]);
}

// The lanes of a warp read B from 32 different banks of 4 bytes, for every stride that row_stride() gives.
constexpr bool reads_all_banks(int stride) {
  for (int i = 0; i < 4; ++i) {
    unsigned banks = 0;
    for (int lane = 0; lane < 32; ++lane) {
      banks |= 1u << (Fragment<float>::b_row(lane, i) * stride + Fragment<float>::b_column(lane, i)) % 32;
    }
    if (banks != 0xffffffffu) return false;
  }
  return true;
}
static_assert(reads_all_banks(showface::row_stride<float>(16)) && reads_all_banks(showface::row_stride<float>(32)));

struct Probe {
  const char* name;
  void (*kernel)(const float*, float*, int);
};
constexpr Probe kProbes[] = {
    {"reverse", reverse},
    {"reverse_race", reverse_race},
    {"neighbour_race", neighbour_race},
    {"uninitialised", uninitialised},
    {"read_past_end", read_past_end},
    {"write_past_dynamic", write_past_dynamic},
    {"write_past_member", write_past_member},
    {"misaligned", misaligned},
    {"lonely_barrier", lonely_barrier},
    {"collectives", collectives},
    {"copies", copies<true>},
    {"copies_without_wait", copies<false>},
    {"product_float16", product<c10::Half>},
    {"product_bfloat16", product<c10::BFloat16>},
    {"product_tf32", product<float>},
    {"product_without_wait", product<c10::BFloat16, false>},
    {"list_tokens", list_tokens},
};

// Run a probe with one block; returns 0, or 1 with the reason in `error`.
extern "C" __attribute__((visibility("default"))) int run_probe(const char* name, const float* in, float* out, int n,
                                                                int threads, int shared_bytes, char* error) {
  error[0] = 0;
  for (const Probe& probe : kProbes) {
    if (std::strcmp(probe.name, name) != 0) continue;
    void* arguments[] = {&in, &out, &n};
    try {
      cudaError_t code = cudaSuccess;
      if (shared_bytes > 48 << 10) {
        code = cudaFuncSetAttribute(probe.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
      }
      if (code == cudaSuccess) {
        code = cudaLaunchKernel(probe.kernel, dim3(1), dim3(threads), arguments, shared_bytes, nullptr);
      }
      if (code == cudaSuccess) return 0;
      std::snprintf(error, 256, "%s", cudaGetErrorString(code));
    } catch (const std::exception& caught) {
      std::snprintf(error, 256, "%s", caught.what());
    }
    return 1;
  }
  std::snprintf(error, 256, "there is no probe with this name");
  return 1;
}
