// Shared memory, and asynchronous copies into it.
//
// Kernels use these functions instead of `__shared__`. In the CPU build of the tests the memory is then allocated by
// the emulator, filled with NaN and checked for accesses out of bounds.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace showface {

// The block's object of type S, uninitialised. Each kernel uses its own type S, and one object of it.
template <typename S>
__device__ S& shared_memory() {
#ifdef SHOWFACE_CUDA_ON_CPU
  static const char key = 0;
  return *static_cast<S*>(cuda_on_cpu::shared(&key, sizeof(S)));
#else
  __shared__ __align__(16) unsigned char bytes[sizeof(S)];
  return *reinterpret_cast<S*>(bytes);
#endif
}

// The dynamic shared memory of the launch, aligned to 16 bytes.
template <typename T>
__device__ T* dynamic_shared_memory() {
#ifdef SHOWFACE_CUDA_ON_CPU
  return static_cast<T*>(cuda_on_cpu::shared(&cuda_on_cpu::block, cuda_on_cpu::block.dynamic_bytes));
#else
  extern __shared__ __align__(16) unsigned char showface_dynamic_bytes[];
  return reinterpret_cast<T*>(showface_dynamic_bytes);
#endif
}

// Start to copy 16 bytes, aligned to 16, from global to shared memory. If not `valid`, writes zeros and does not read
// `global`. Afterwards copy_commit() ends a group of copies, copy_wait() waits for all groups of this thread, and
// __syncthreads() makes the copies visible to the other threads.
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global, bool valid) {
  const int read = valid ? 16 : 0;
#ifdef SHOWFACE_CUDA_ON_CPU
  cuda_on_cpu::copy_async(shared, global, 16, read);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(read) : "memory");
#endif
}

__device__ __forceinline__ void copy_commit() {
#ifdef SHOWFACE_CUDA_ON_CPU
  cuda_on_cpu::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

__device__ __forceinline__ void copy_wait() {
#ifdef SHOWFACE_CUDA_ON_CPU
  cuda_on_cpu::copy_wait(0);
#else
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
}

}  // namespace showface
