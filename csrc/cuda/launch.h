// Kernel launches on torch's device and stream. In the CPU build of the tests, the kernel runs in the calling thread.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#ifdef SHOWFACE_CUDA_ON_CPU
#define SHOWFACE_CUDA_KEY CPU
#else
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#define SHOWFACE_CUDA_KEY CUDA
#endif

#include "../common/library.h"

namespace showface {

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

#ifdef SHOWFACE_CUDA_ON_CPU
struct LaunchGuard {
  explicit LaunchGuard(int32_t) {}
  cudaStream_t stream() const { return nullptr; }
  int multiprocessors() const { return cuda_on_cpu::multiprocessors; }
  size_t shared_bytes() const { return cuda_on_cpu::shared_bytes_of_block; }
};
#else
// torch's current stream. The getter is in torch's CUDA library. A CPU build of torch has no such library, and this
// extension must load there too, so the getter is looked up at the first launch. (The getter in torch's CPU library
// returns torch's own stream object. torch 2.11 has no function to get the CUDA handle from it.)
inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    constexpr const char* name = "aoti_torch_get_current_cuda_stream";
    void* symbol = dlsym(RTLD_DEFAULT, name);
    if (symbol == nullptr) {
      if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, name);
    }
    return reinterpret_cast<Getter>(symbol);
  }();
  STD_TORCH_CHECK(getter != nullptr, "showface: torch's CUDA library has no function for the current stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "showface: torch has no current stream for CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

// A positive attribute of a device, cached.
template <cudaDeviceAttr Attribute>
int attribute_of(int32_t device) {
  static std::array<std::atomic<int>, 64> known{};
  int value = device < 64 ? known[device].load(std::memory_order_relaxed) : 0;
  if (value == 0) {
    check_cuda(cudaDeviceGetAttribute(&value, Attribute, device), "cudaDeviceGetAttribute");
    if (device < 64) known[device].store(value, std::memory_order_relaxed);
  }
  return value;
}

// Makes `device` current for torch and for the CUDA runtime of this library (a static copy with a current device of its
// own). The destructor restores torch's current device.
class LaunchGuard {
 public:
  explicit LaunchGuard(int32_t device) : guard_(device), device_(device), stream_(current_stream(device)) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return attribute_of<cudaDevAttrMultiProcessorCount>(device_); }
  // Bytes of shared memory that a block may use: 227 KB on sm_90, 163 KB on sm_80, 99 KB on sm_86, sm_89 and sm_120.
  size_t shared_bytes() const { return attribute_of<cudaDevAttrMaxSharedMemoryPerBlockOptin>(device_); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
  cudaStream_t stream_;
};
#endif

template <typename T>
struct Identity {
  using type = T;
};

// Allow `kernel` all dynamic shared memory that a block may have; without this a block gets 48 KiB. Not just what one
// launch needs: the limit belongs to the kernel, and another thread may be launching it with more.
template <typename... Parameters>
void allow_shared_memory(const char* name, void (*kernel)(Parameters...)) {
  const auto allow = [&](size_t bytes) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
               name);
  };
#ifdef SHOWFACE_CUDA_ON_CPU
  allow(cuda_on_cpu::shared_bytes_of_block);
#else
  int device = 0;
  check_cuda(cudaGetDevice(&device), name);
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Parameters...), int>, bool> allowed;
  const std::lock_guard lock(mutex);
  if (bool& done = allowed[{kernel, device}]; !done) {
    allow(attribute_of<cudaDevAttrMaxSharedMemoryPerBlockOptin>(device));
    done = true;
  }
#endif
}

// Launch `kernel` with shared_bytes bytes of dynamic shared memory. Raises if the launch fails.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes,
            cudaStream_t stream, typename Identity<Parameters>::type... arguments) {
  if (shared_bytes > 48 << 10) allow_shared_memory(name, kernel);
  void* places[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  check_cuda(cudaLaunchKernel(kernel, grid, threads, places, shared_bytes, stream), name);
}

}  // namespace showface
