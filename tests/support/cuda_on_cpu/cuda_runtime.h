// A CUDA emulator for g++: the parts of CUDA C++ and its runtime that the kernels of csrc/cuda use. It replaces the
// toolkit's header of the same name. docs/cuda-on-cpu.md lists what it models.
//
// Blocks run one after another. The threads of a block are fibers. A fiber runs until it must wait at a barrier or in a
// warp collective. Then the next one runs, in the order of their indices or in a random order.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define SHOWFACE_CUDA_ON_CPU
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::exp, std::exp2, std::expm1, std::log2, std::max, std::min, std::sqrt;

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  size_t volume() const { return size_t(x) * y * z; }
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

#include "fibers.h"

inline void __syncthreads() {
  using cuda_on_cpu::block;
  const size_t barrier = block.barriers;
  ++block.at_barrier;
  cuda_on_cpu::wait("__syncthreads", [barrier] {
    // Threads that have ended are not waited for.
    if (block.barriers == barrier && block.at_barrier == block.alive) {
      block.at_barrier = 0;
      ++block.barriers;
    }
    return block.barriers != barrier;
  });
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_cpu::exchange("__syncwarp", mask, nullptr, 0); }
inline int lane_here() { return static_cast<int>(cuda_on_cpu::block.current % 32); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, lane_here() / width * width + from % width, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, lane_here() ^ bits, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, lane_here() - static_cast<int>(by), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, lane_here() + static_cast<int>(by), width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const char vote = predicate != 0;
  const auto* votes = cuda_on_cpu::exchange("__ballot_sync", mask, &vote, 1);
  unsigned all = 0;
  for (unsigned lane = 0; lane < 32; ++lane) all |= (mask >> lane & 1 && votes[lane][0]) << lane;
  return all;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <typename T>
T atomicAdd(T* address, T value) {
  return std::exchange(*address, static_cast<T>(*address + value));
}
template <typename T>
T atomicMax(T* address, T value) {
  return std::exchange(*address, std::max(*address, value));
}
inline void __threadfence() {}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

// The parts of the CUDA runtime that csrc/cuda/launch.h uses.
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoKernelImageForDevice = 209;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "no kernel image is available for execution on the device"
                                                  : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// Whether the kernels were compiled for the GPU that is played here.
inline bool cuda_on_cpu_has_image = true;
extern "C" __attribute__((used, weak, visibility("default"))) void cuda_on_cpu_image(int exists) {
  cuda_on_cpu_has_image = exists;
}
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cuda_on_cpu_has_image ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

// The dynamic shared memory that a kernel may use: 48 KB unless it asked for more.
inline std::map<const void*, size_t> cuda_on_cpu_allowed_bytes;
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  // The limit belongs to the kernel: another thread may be launching it with all that a block may have.
  if (static_cast<size_t>(bytes) != cuda_on_cpu::shared_bytes_of_block) return cudaErrorInvalidValue;
  cuda_on_cpu_allowed_bytes[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename... Parameters, size_t... I>
void cuda_on_cpu_run(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  cuda_on_cpu::block.kernel = [=] { kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...); };
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        cuda_on_cpu::run_block();
      }
}

template <typename... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 threads, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  using cuda_on_cpu::block;
  if (threads.volume() > 1024 || threads.volume() == 0 || grid.volume() == 0 || grid.y > 65535 || grid.z > 65535)
    throw cuda_on_cpu::KernelError("a launch of this size would fail");
  const auto allowed = cuda_on_cpu_allowed_bytes.find(reinterpret_cast<const void*>(kernel));
  if (shared_bytes > (allowed == cuda_on_cpu_allowed_bytes.end() ? size_t(48) << 10 : allowed->second))
    return cudaErrorInvalidValue;
  gridDim = grid;
  blockDim = threads;
  block.size = threads.volume();
  block.dynamic_bytes = shared_bytes;
  cuda_on_cpu_run(kernel, arguments, std::index_sequence_for<Parameters...>{});
  return cudaSuccess;
}
