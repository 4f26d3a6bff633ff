// How kernels are launched: on torch's device and stream, or, where the tests compile them for a CPU, right here.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <type_traits>

#ifdef SHOWFACE_CUDA_ON_CPU
#define SHOWFACE_CUDA_KEY CPU
#else
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <atomic>
#define SHOWFACE_CUDA_KEY CUDA
#endif

namespace showface {

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

#ifdef SHOWFACE_CUDA_ON_CPU
struct LaunchGuard {
  explicit LaunchGuard(int32_t) {}
  cudaStream_t stream() const { return nullptr; }
  int multiprocessors() const { return cuda_on_cpu::multiprocessors; }
};
#else
// torch's current stream. The getter lives in torch's CUDA library, which a CPU build of torch hasn't, and this
// library must load there too: so the getter is looked up when the first kernel is launched. (The getter in the CPU
// library returns torch's own stream object, from which torch 2.11 offers no way to the CUDA handle.)
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
  STD_TORCH_CHECK(getter != nullptr, "showface: torch's CUDA library offers no current stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "showface: torch has no current stream for CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

// How many a device has; each device is asked once.
inline int multiprocessors(int32_t device) {
  static std::array<std::atomic<int>, 64> known{};
  int count = device < 64 ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    if (device < 64) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

// Makes `device` current for torch and for the CUDA runtime that this library carries (a static copy, whose notion
// of the current device is its own), and restores torch's when it ends.
class LaunchGuard {
 public:
  explicit LaunchGuard(int32_t device) : guard_(device), device_(device), stream_(current_stream(device)) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return showface::multiprocessors(device_); }

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

// Run `kernel` on a grid of blocks of threads, with `shared_bytes` of dynamic shared memory. Raises if it can't start.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes,
            cudaStream_t stream, typename Identity<Parameters>::type... arguments) {
  // More than this has to be asked for, kernel by kernel.
  if (shared_bytes > 48 << 10) {
    const int bytes = static_cast<int>(shared_bytes);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  }
  void* places[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  check_cuda(cudaLaunchKernel(kernel, grid, threads, places, shared_bytes, stream), name);
}

}  // namespace showface
