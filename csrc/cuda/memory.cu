// memory_read on CUDA: one launch, one block of threads for each token.
#include <torch/csrc/stable/library.h>

#include <climits>

#include "../common/memory.h"
#include "launch.h"
#include "shared_memory.h"
#include "warp.h"

namespace showface {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 1024;         // slots whose weights are held in shared memory at once
constexpr int kChannelsPerThread = 4;

// Every thread of the block gets the result. `partial` has kWarps places.
template <template <typename> class Op, typename A>
__device__ A block_reduce(A value, A* partial) {
  value = warp_reduce<Op>(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) value = Op<A>::of(value, partial[warp]);
  return value;
}

// score[s] = gain * <latent, unit(block[s])> for `count` slots: a warp takes a slot, its lanes the channels.
template <typename T, typename A>
__device__ void score_slots(const T* latent, const T* block, int count, int64_t channels, A gain, A* score) {
  const int lane = threadIdx.x % 32;
  for (int s = threadIdx.x / 32; s < count; s += kWarps) {
    const T* slot = block + static_cast<int64_t>(s) * channels;
    A product = 0, square = 0;
#pragma unroll 4
    for (int64_t c = lane; c < channels; c += 32) {
      const A value = static_cast<A>(slot[c]);
      product += static_cast<A>(latent[c]) * value;
      square += value * value;
    }
    product = warp_reduce<Sum>(product);
    square = warp_reduce<Sum>(square);
    if (lane == 0) score[s] = gain * product / Max<A>::of(sqrt(square), A(kMinNorm));
  }
  __syncthreads();
}

template <typename A>
struct ReadShared {
  A weight[kTile];
  A partial[kWarps];
};

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    memory_read_kernel(const T* __restrict__ latent, const T* __restrict__ memory, const int64_t* __restrict__ region,
                       const void* __restrict__ temperature, ScalarType temperature_type, A scale, MemoryShape shape,
                       T* __restrict__ out) {
  auto& [weight, partial] = shared_memory<ReadShared<A>>();
  const int64_t slots = shape.slots, channels = shape.channels;
  const int64_t token = blockIdx.x;
  const int64_t block_index = region[token];
  latent += token * channels;
  out += token * channels;
  CUDA_KERNEL_ASSERT(block_index >= -1 && block_index < shape.regions);
  if (block_index < 0 || block_index >= shape.regions) {
    for (int64_t c = threadIdx.x; c < channels; c += kThreads) out[c] = static_cast<T>(A(0));
    return;
  }
  const T* block = memory + block_index * slots * channels;

  A square = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
    const A value = static_cast<A>(latent[c]);
    square += value * value;
  }
  square = block_reduce<Sum>(square, partial);
  const A gain = scale * load_scalar<A>(temperature, temperature_type) / Max<A>::of(sqrt(square), A(kMinNorm));

  // The softmax's maximum and sum, one tile of slots after another.
  A peak = -INFINITY, sum = 0;
  for (int64_t first = 0; first < slots; first += kTile) {
    const int count = static_cast<int>(slots - first < kTile ? slots - first : kTile);
    score_slots(latent, block + first * channels, count, channels, gain, weight);
    A tile_peak = -INFINITY, tile_sum = 0;
    for (int s = threadIdx.x; s < count; s += kThreads) tile_peak = Max<A>::of(tile_peak, weight[s]);
    tile_peak = Max<A>::of(peak, block_reduce<Max>(tile_peak, partial));
    for (int s = threadIdx.x; s < count; s += kThreads) tile_sum += exp(weight[s] - tile_peak);
    sum = sum * exp(peak - tile_peak) + block_reduce<Sum>(tile_sum, partial);
    peak = tile_peak;
  }

  // The weighted sum: a thread owns some channels. With a single tile the scores are still there; with more
  // (over kTile slots, which is rare) they are computed again rather than stored.
  const bool one_tile = slots <= kTile;
  for (int64_t c0 = 0; c0 < channels; c0 += kThreads * kChannelsPerThread) {
    A mixed[kChannelsPerThread] = {};
    for (int64_t first = 0; first < slots; first += kTile) {
      const int count = static_cast<int>(slots - first < kTile ? slots - first : kTile);
      const T* rows = block + first * channels;
      if (!one_tile || c0 == 0) {
        __syncthreads();
        if (!one_tile) score_slots(latent, rows, count, channels, gain, weight);
        for (int s = threadIdx.x; s < count; s += kThreads) weight[s] = exp(weight[s] - peak) / sum;
        __syncthreads();
      }
      for (int s = 0; s < count; ++s) {
        const T* row = rows + s * channels;
#pragma unroll
        for (int j = 0; j < kChannelsPerThread; ++j) {
          const int64_t c = c0 + j * kThreads + threadIdx.x;
          if (c < channels) mixed[j] += weight[s] * static_cast<A>(row[c]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kChannelsPerThread; ++j) {
      const int64_t c = c0 + j * kThreads + threadIdx.x;
      if (c < channels) out[c] = static_cast<T>(mixed[j]);
    }
  }
}

template <typename T, typename A>
void run(const Tensor& latent, const Tensor& memory, const Tensor& region, const std::optional<Tensor>& temperature,
         double scale, const MemoryShape& shape, Tensor& out, cudaStream_t stream) {
  launch("memory_read", memory_read_kernel<T, A>, dim3(static_cast<unsigned>(shape.tokens)), kThreads, 0, stream,
         static_cast<const T*>(latent.const_data_ptr()), static_cast<const T*>(memory.const_data_ptr()),
         static_cast<const int64_t*>(region.const_data_ptr()),
         temperature.has_value() ? temperature->const_data_ptr() : nullptr,
         temperature.has_value() ? temperature->scalar_type() : ScalarType::Float, static_cast<A>(scale), shape,
         static_cast<T*>(out.mutable_data_ptr()));
}

Tensor memory_read(const Tensor& latent, const Tensor& memory, const Tensor& region,
                   const std::optional<Tensor>& temperature, double scale) {
  const MemoryShape shape = check_memory_read(latent, memory, region, temperature);
  STD_TORCH_CHECK(shape.tokens <= INT_MAX, "memory_read on CUDA takes at most 2**31 - 1 tokens");
  const ScalarType type = latent.scalar_type();
  STD_TORCH_CHECK(is_floating(type), "memory_read on CUDA takes float16, bfloat16, float32 and float64");
  const LaunchGuard guard(latent.get_device_index());
  Tensor out = torch::stable::empty({shape.tokens, shape.channels}, type, std::nullopt, latent.device());
  if (out.numel() == 0) return out;
  const Tensor z = as_contiguous(latent), m = as_contiguous(memory), r = as_contiguous(region);
  switch (type) {
    case ScalarType::Double:
      run<double, double>(z, m, r, temperature, scale, shape, out, guard.stream());
      break;
    case ScalarType::Half:
      run<c10::Half, float>(z, m, r, temperature, scale, shape, out, guard.stream());
      break;
    case ScalarType::BFloat16:
      run<c10::BFloat16, float>(z, m, r, temperature, scale, shape, out, guard.stream());
      break;
    default:
      run<float, float>(z, m, r, temperature, scale, shape, out, guard.stream());
  }
  return out;
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(showface_C, SHOWFACE_CUDA_KEY, m) { m.impl("memory_read", TORCH_BOX(&showface::memory_read)); }
