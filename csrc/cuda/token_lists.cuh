// Which tokens belong together: lists of them made on the device, and the part of the lists that a block works on.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

#include "token_tiles.cuh"

namespace showface {

C10_HOST_DEVICE constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }

// Rows of a tensor: those of a list, or without one, `count` that follow one another.
struct RowList {
  const int* list;
  int first, count;
  __device__ int operator[](int i) const { return list != nullptr ? list[i] : first + i; }
  __device__ int or_none(int i) const { return i < count ? (*this)[i] : -1; }
  __device__ RowList part(int from, int up_to) const {
    return {list != nullptr ? list + from : nullptr, first + from, min(up_to, count - from)};
  }
};

// What one block multiplies: a tile of rows with all columns that go with them, which may be none.
struct Work {
  RowList rows, columns;
};

// Groups of queries and the keys that they look at.
//
// Tokens are listed in segments. A group has one or two: its queries, and tokens that don't ask and are its keys unless
// `keys_each` says otherwise. The tokens of a segment behind those of all groups don't ask either.
struct Groups {
  const int* order;       // rows, segment by segment
  const int* bounds;      // where each segment begins in `order`, and where the last one ends
  const int64_t* region;  // a few tokens' regions, if each block is to sort them itself: a segment for each, one for -1
  bool unsorted;          // so it is, and order and bounds aren't there
  int tokens, count, segments, segments_each;
  int keys_each;          // a group's keys are this many rows that follow one another; 0: the segment behind its own

  __device__ RowList segment(int s) const { return {order + bounds[s], 0, bounds[s + 1] - bounds[s]}; }
  __device__ void sort(Arena& arena);
  template <bool Keys>
  __device__ Work find(int tile_rows) const;
};

// The tile of rows that this block has in the launch's x: queries and, as columns, their keys; or the contrary.
// Nobody on the host knows how many tiles there are, so each block counts them; those too many get no rows.
template <bool Keys>
__device__ Work Groups::find(int tile_rows) const {
  Work work{};
  int tile = static_cast<int>(blockIdx.x);
  if (Keys && keys_each > 0) {
    const int tiles = divide_up(keys_each, tile_rows), group = tile / tiles;
    work.rows = RowList{nullptr, group * keys_each, keys_each}.part(tile % tiles * tile_rows, tile_rows);
    work.columns = segment(group * segments_each);
    return work;
  }
  const int lane = warp_lane();
  for (int first = 0; first < segments; first += 32) {
    const int s = first + lane;
    const int tiles = s < segments ? divide_up(bounds[s + 1] - bounds[s], tile_rows) : 0;
    const int up_to = warp_prefix_sum(tiles);
    const unsigned behind = __ballot_sync(0xffffffffu, tile < up_to);
    if (behind == 0) {
      tile -= __shfl_sync(0xffffffffu, up_to, 31);
      continue;
    }
    const int holder = __ffs(static_cast<int>(behind)) - 1, found = first + holder;
    tile -= __shfl_sync(0xffffffffu, up_to - tiles, holder);
    work.rows = segment(found).part(tile * tile_rows, tile_rows);
    if (Keys) {
      if (found % segments_each == 1) work.columns = segment(found - 1);
    } else if (const int group = found / segments_each; found % segments_each == 0 && group < count) {
      work.columns = keys_each > 0 ? RowList{nullptr, group * keys_each, keys_each} : segment(found + 1);
    }
    return work;
  }
  return work;
}

// A stable counting sort by region, the tokens of region -1 last. A block takes `tokens` that lie together, a warp some of
// these. The counts are whole numbers, so that their order of adding is of no matter.

// In which of regions + 1 bins a token belongs.
__device__ inline int bin_of(int64_t region, int regions) {
  CUDA_KERNEL_ASSERT(region >= -1 && region < regions);
  return region < 0 || region >= regions ? regions : static_cast<int>(region);
}

// counts (warps, regions + 1), shared: how many tokens of each bin a warp has.
__device__ inline void count_regions(const int64_t* region, int tokens, int regions, int* counts) {
  const int bins = regions + 1, warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int i = threadIdx.x; i < warps * bins; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  const int each = divide_up(tokens, warps);
  const int end = min((warp + 1) * each, tokens);
  for (int i = warp * each + warp_lane(); i < end; i += 32) atomicAdd(&counts[warp * bins + bin_of(region[i], regions)], 1);
  __syncthreads();
}

// Write the rows first ... first + tokens - 1 to their places in `order`, which holds those of all blocks. bounds
// (regions + 2), shared: gets where each bin begins. of_blocks (blocks, regions + 1): the counts of every block, or
// null where there is only this one.
__device__ inline void sort_by_region(const int64_t* region, int first, int tokens, int regions, const int* of_blocks,
                                      int* counts, int* bounds, int* order) {
  const int bins = regions + 1, warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = warp_lane();
  count_regions(region, tokens, regions, counts);
  // counts: where in its bin a warp's next token goes.
  for (int bin = threadIdx.x; bin <= bins; bin += blockDim.x) {
    int all = 0, before = 0;
    for (int b = 0; of_blocks != nullptr && bin < bins && b < static_cast<int>(gridDim.x); ++b) {
      const int count = of_blocks[static_cast<int64_t>(b) * bins + bin];
      all += count;
      if (b < static_cast<int>(blockIdx.x)) before += count;
    }
    for (int w = 0; bin < bins && w < warps; ++w) {
      const int count = counts[w * bins + bin];
      counts[w * bins + bin] = before;
      before += count;
    }
    bounds[bin] = of_blocks != nullptr ? all : before;
  }
  __syncthreads();
  if (warp == 0) {
    int begin = 0;
    for (int from = 0; from <= bins; from += 32) {
      const int bin = from + lane, count = bin <= bins ? bounds[bin] : 0;
      const int up_to = begin + warp_prefix_sum(count);
      if (bin <= bins) bounds[bin] = up_to - count;
      begin = __shfl_sync(0xffffffffu, up_to, 31);
    }
  }
  __syncthreads();
  const int each = divide_up(tokens, warps);
  const int end = min((warp + 1) * each, tokens);
  for (int from = warp * each; from < end; from += 32) {
    const int i = from + lane;
    const int bin = i < end ? bin_of(region[i], regions) : bins;
    unsigned same = 0xffffffffu;  // the lanes with this one's bin
    for (int bit = 1; bit <= bins; bit *= 2) {
      const unsigned with_bit = __ballot_sync(0xffffffffu, (bin & bit) != 0);
      same &= (bin & bit) != 0 ? with_bit : ~with_bit;
    }
    const int rank = __popc(same & ((1u << lane) - 1));
    if (i < end) order[bounds[bin] + counts[warp * bins + bin] + rank] = first + i;
    __syncwarp();
    if (i < end && rank == 0) counts[warp * bins + bin] += __popc(same);
    __syncwarp();
  }
}

// What a block needs in shared memory to sort by itself, and after it `order` and `bounds` are there.
C10_HOST_DEVICE constexpr int64_t sort_numbers(int64_t tokens, int64_t regions, int64_t warps) {
  return tokens + (regions + 2) + warps * (regions + 1);
}

__device__ inline void Groups::sort(Arena& arena) {
  int* const own_order = arena.take<int>(tokens);
  int* const own_bounds = arena.take<int>(count + 2);
  int* const counts = arena.take<int>(static_cast<int>(blockDim.x) / 32 * (count + 1));
  sort_by_region(region, 0, tokens, count, nullptr, counts, own_bounds, own_order);
  __syncthreads();
  order = own_order;
  bounds = own_bounds;
}

}  // namespace showface
