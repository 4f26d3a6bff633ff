// The device and stream that a launch has to go to.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace showface {

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

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

// Makes `device` current for torch and for the CUDA runtime that this library carries (a static copy, whose notion
// of the current device is its own), and restores torch's when it ends.
class LaunchGuard {
 public:
  explicit LaunchGuard(int32_t device) : guard_(device), stream_(current_stream(device)) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace showface
