// Memory addressing on CUDA: the tokens of each region attend to the slots of the region's block.
#include <algorithm>
#include <climits>
#include <tuple>

#include "../common/library.h"
#include "../common/memory.h"
#include "attention.h"

namespace showface {
namespace {

constexpr int kSortThreads = 256;
constexpr int kSortBlocks = 256;   // At most. Each block reads the counts of all blocks.
constexpr int kMaxRegions = 2048;  // The sort's counts fit into the shared memory of every device.

struct SortShared {
  int *counts, *bounds;
  __device__ explicit SortShared(int regions)
      : counts(dynamic_shared_memory<int>()), bounds(counts + kSortThreads / 32 * (regions + 1)) {}
};
size_t sort_bytes(int64_t regions) { return sizeof(int) * sort_ints(0, regions, kSortThreads / 32); }

// Writes of_blocks (blocks, regions + 1): the number of tokens per region (last: region -1) among the `each` tokens of
// a block.
__global__ void __launch_bounds__(kSortThreads, 4)
    count_regions_kernel(const int64_t* __restrict__ region, int tokens, int each, int regions,
                         int* __restrict__ of_blocks) {
  int* const counts = SortShared(regions).counts;
  const int first = blockIdx.x * each, bins = regions + 1;
  count_regions(region + first, min(each, tokens - first), regions, counts);
  for (int bin = threadIdx.x; bin < bins; bin += kSortThreads) {
    int count = 0;
    for (int warp = 0; warp < kSortThreads / 32; ++warp) count += counts[warp * bins + bin];
    of_blocks[static_cast<int64_t>(blockIdx.x) * bins + bin] = count;
  }
}

// Writes order (tokens) and bounds (regions + 2) from the counts of all blocks. A single block needs no counts.
__global__ void __launch_bounds__(kSortThreads, 4)
    sort_kernel(const int64_t* __restrict__ region, int tokens, int each, int regions,
                const int* __restrict__ of_blocks, int* __restrict__ order, int* __restrict__ bounds) {
  const SortShared shared(regions);
  const int first = blockIdx.x * each;
  sort_by_region(region + first, first, min(each, tokens - first), regions, gridDim.x > 1 ? of_blocks : nullptr,
                 shared.counts, shared.bounds, order);
  for (int i = threadIdx.x; i < regions + 2 && blockIdx.x == 0; i += kSortThreads) bounds[i] = shared.bounds[i];
}

// The sorted tokens of a call (empty if the blocks sort them), and the arguments of the attention kernels.
struct Call {
  MemoryShape shape;
  Tensor region, order, bounds;
  Attention attention;

  Call(const char* op, const Tensor& latent, const Tensor& memory, const std::optional<Tensor>& value,
       const Tensor& region_of_token, const std::optional<Tensor>& temperature, double scale, bool tf32,
       const LaunchGuard& guard)
      : shape(check_memory(op, latent, memory, value, region_of_token, temperature)),
        region(as_contiguous(region_of_token)),
        order(empty(latent, {0}, ScalarType::Int)),
        bounds(order) {
    STD_TORCH_CHECK(
        shape.tokens < INT_MAX / 2 && shape.regions * shape.slots < INT_MAX / 2 && shape.regions <= kMaxRegions, op,
        " on CUDA takes up to 2**30 tokens, as many slots, and ", kMaxRegions, " regions");
    const int tokens = static_cast<int>(shape.tokens), regions = static_cast<int>(shape.regions);
    Groups groups{nullptr, nullptr, numbers<int64_t>(region),     true, tokens, regions, regions + 1,
                  1,       false,   static_cast<int>(shape.slots)};
    if (tokens > kSelfSorted || regions > kSelfSortedRegions) {
      sort(op, guard.stream());
      groups.order = numbers<int>(order);
      groups.bounds = numbers<int>(bounds);
      groups.unsorted = false;
    }
    const Tensor keys = as_contiguous(memory);
    attention = {op,
                 as_contiguous(latent),
                 keys,
                 value.has_value() ? as_contiguous(*value) : keys,
                 shape.tokens,
                 shape.regions * shape.slots,
                 shape.channels,
                 shape.values,
                 groups,
                 (shape.tokens + shape.regions - 1) / shape.regions,
                 shape.slots,
                 temperature,
                 scale,
                 tf32,
                 guard.stream(),
                 guard.multiprocessors(),
                 guard.shared_bytes()};
  }

  void sort(const char* op, cudaStream_t stream) {
    const int64_t tokens = shape.tokens, bins = shape.regions + 1;
    const int64_t each = std::max<int64_t>(tokens <= 2048 ? 2048 : 1024, (tokens + kSortBlocks - 1) / kSortBlocks);
    const unsigned blocks = std::max(1u, blocks_of(tokens, each));
    order = empty(region, {tokens}, ScalarType::Int);
    bounds = empty(region, {bins + 1}, ScalarType::Int);
    Tensor of_blocks = empty(region, {blocks > 1 ? blocks : 0, bins}, ScalarType::Int);
    if (blocks > 1) {
      launch(op, count_regions_kernel, dim3(blocks), kSortThreads, sort_bytes(shape.regions), stream,
             numbers<int64_t>(region), static_cast<int>(tokens), static_cast<int>(each),
             static_cast<int>(shape.regions), numbers_to_fill<int>(of_blocks));
    }
    launch(op, sort_kernel, dim3(blocks), kSortThreads, sort_bytes(shape.regions), stream, numbers<int64_t>(region),
           static_cast<int>(tokens), static_cast<int>(each), static_cast<int>(shape.regions), numbers<int>(of_blocks),
           numbers_to_fill<int>(order), numbers_to_fill<int>(bounds));
  }
};

std::tuple<Tensor, Tensor> memory_attend(const Tensor& latent, const Tensor& memory, const std::optional<Tensor>& value,
                                         const Tensor& region, const std::optional<Tensor>& temperature, double scale,
                                         bool tf32) {
  const LaunchGuard guard(latent.get_device_index());
  const Call call("memory_attend", latent, memory, value, region, temperature, scale, tf32, guard);
  Tensor out = empty(latent, {call.shape.tokens, call.shape.values});
  Tensor lse = empty(latent, {call.shape.tokens}, type_of_sums(latent.scalar_type()));
  attention_forward(call.attention, &out, lse);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> memory_attend_backward(
    const Tensor& grad, const Tensor& latent, const Tensor& memory, const std::optional<Tensor>& value,
    const Tensor& region, const Tensor& out, const Tensor& lse, const std::optional<Tensor>& temperature, double scale,
    bool tf32) {
  const LaunchGuard guard(latent.get_device_index());
  constexpr const char* op = "memory_attend_backward";
  const Call call(op, latent, memory, value, region, temperature, scale, tf32, guard);
  const MemoryShape& shape = call.shape;
  check_memory_results(op, shape, latent, grad, out, lse);
  const ScalarType type = latent.scalar_type();
  Tensor grad_latent = empty(latent, {shape.tokens, shape.channels}, type);
  Tensor grad_memory = empty(latent, {shape.regions, shape.slots, shape.channels}, type);
  Tensor grad_value = empty(latent, {value.has_value() ? shape.regions : 0, shape.slots, shape.values}, type);
  Tensor grad_temperature =
      attention_backward(call.attention, as_contiguous(grad), as_contiguous(out), as_contiguous(lse), grad_latent,
                         grad_memory, value.has_value() ? &grad_value : nullptr);
  return {grad_latent, grad_memory, grad_value, grad_temperature};
}

// The log-sum-exp (base 2) of each token's scores: the forward without values.
Tensor lse_of(Call& call) {
  Tensor lse = empty(call.attention.query, {call.shape.tokens}, type_of_sums(call.attention.query.scalar_type()));
  call.attention.values = 0;
  attention_forward(call.attention, nullptr, lse);
  call.attention.values = call.shape.channels;
  return lse;
}

std::tuple<Tensor, Tensor> memory_accumulate(const Tensor& latent, const Tensor& memory, const Tensor& region,
                                             const std::optional<Tensor>& temperature, double scale, bool tf32) {
  const LaunchGuard guard(latent.get_device_index());
  Call call("memory_accumulate", latent, memory, std::nullopt, region, temperature, scale, tf32, guard);
  const MemoryShape& shape = call.shape;
  Tensor rho = empty(latent, {shape.regions, shape.slots}, type_of_sums(latent.scalar_type()));
  Tensor total = empty(latent, {shape.regions, shape.slots, shape.channels}, type_of_sums(latent.scalar_type()));
  attention_accumulate(call.attention, lse_of(call), total, rho);
  return {rho, total};
}

std::tuple<Tensor, Tensor> memory_write(const Tensor& latent, const Tensor& memory, const Tensor& region,
                                        const std::optional<Tensor>& temperature, double scale, double rate,
                                        bool tf32) {
  const LaunchGuard guard(latent.get_device_index());
  Call call("memory_write", latent, memory, std::nullopt, region, temperature, scale, tf32, guard);
  const MemoryShape& shape = call.shape;
  Tensor rho = empty(latent, {shape.regions, shape.slots}, type_of_sums(latent.scalar_type()));
  Tensor after = empty(latent, {shape.regions, shape.slots, shape.channels});
  attention_write(call.attention, lse_of(call), rate, after, rho);
  return {after, rho};
}

Tensor memory_blend(const Tensor& memory, const Tensor& rho, const Tensor& total, double rate) {
  check_memory_blend(memory, rho, total);
  STD_TORCH_CHECK(is_floating(memory.scalar_type()) && rho.scalar_type() == type_of_sums(memory.scalar_type()),
                  "memory_blend on CUDA takes rho and total in float64 for a float64 memory, else in float32");
  const LaunchGuard guard(memory.get_device_index());
  Tensor after = empty(memory, {memory.size(0), memory.size(1), memory.size(2)});
  blend_keys("memory_blend", as_contiguous(memory), as_contiguous(total), as_contiguous(rho), rate, after,
             guard.stream());
  return after;
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(SHOWFACE_LIBRARY, SHOWFACE_CUDA_KEY, m) {
  m.impl("memory_attend", TORCH_BOX(&showface::memory_attend));
  m.impl("memory_attend_backward", TORCH_BOX(&showface::memory_attend_backward));
  m.impl("memory_accumulate", TORCH_BOX(&showface::memory_accumulate));
  m.impl("memory_write", TORCH_BOX(&showface::memory_write));
  m.impl("memory_blend", TORCH_BOX(&showface::memory_blend));
}
