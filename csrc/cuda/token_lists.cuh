// Lists of the tokens of each group, built on the device, and the part of them that a block works on.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

#include "token_tiles.cuh"

namespace showface {

C10_HOST_DEVICE constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }

// Rows of a tensor: the rows in `list`, or if it is null the `count` rows from `first` on.
struct RowList {
  const int* list;
  int first, count;
  __device__ int operator[](int i) const { return list != nullptr ? list[i] : first + i; }
  __device__ int or_none(int i) const { return i < count ? (*this)[i] : -1; }
  __device__ RowList part(int from, int up_to) const {
    return {list != nullptr ? list + from : nullptr, first + from, min(up_to, count - from)};
  }
};

// The work of one block: a tile of rows, and all columns of their group. Either may be empty.
struct Work {
  RowList rows, columns;
};

// Groups of queries, and the keys that they attend to.
//
// Tokens are listed in segments. A group has one or two segments: its queries, and (masked_correlation) its known
// tokens, which are its keys if listed_keys is true. One more segment may follow the groups. Its tokens belong to no
// group and are no queries.
struct Groups {
  const int* order;       // Token indices, segment by segment.
  const int* bounds;      // Start of each segment in `order`, and the end of the last one.
  const int64_t* region;  // The region of each token, if each block sorts: one segment per region, then region -1.
  bool unsorted;          // Each block sorts `region`; order and bounds are null.
  int tokens, count, segments, segments_each;
  bool listed_keys;  // The keys are the tokens of the group's second segment, not the rows of a matrix.
  int key_rows;      // Rows of a group's matrix of keys, if not listed_keys.

  __device__ RowList segment(int s) const { return {order + bounds[s], 0, bounds[s + 1] - bounds[s]}; }
  __device__ void sort(Arena& arena);
  template <bool Keys>
  __device__ Work find(int tile_rows) const;
};

// The tile with number blockIdx.x. With Keys = false its rows are queries and its columns their keys, else the other
// way round. The host does not know the sizes of the segments, so it launches a block for each tile that there could
// be: tokens / tile_rows + segments. Segment s gets the blocks from bounds[s] / tile_rows + s on, which are as many as
// its tiles, or one more. A block that is left over gets no rows.
template <bool Keys>
__device__ Work Groups::find(int tile_rows) const {
  Work work{};
  const int block = static_cast<int>(blockIdx.x);
  if (Keys && !listed_keys) {
    const int tiles = divide_up(key_rows, tile_rows), group = block / tiles;
    work.rows = RowList{nullptr, group * key_rows, key_rows}.part(block % tiles * tile_rows, tile_rows);
    work.columns = segment(group * segments_each);
    return work;
  }
  const auto first_block = [&](int s) { return bounds[s] / tile_rows + s; };
  // The last segment that starts at this block or before it. Each step of the warp divides the range by 32.
  int found = 0;
  for (int range = segments; range > 1;) {
    const int step = divide_up(range, 32), s = found + warp_lane() * step;
    const bool before = s < found + range && first_block(s) <= block;
    const int lane = __popc(__ballot_sync(0xffffffffu, before)) - 1;
    range = min(step, range - lane * step);
    found += lane * step;
  }
  const int from = (block - first_block(found)) * tile_rows;
  const RowList all = segment(found);
  if (from >= all.count) return work;
  work.rows = all.part(from, tile_rows);
  if (Keys) {
    if (found % segments_each == 1) work.columns = segment(found - 1);
  } else if (const int group = found / segments_each; found % segments_each == 0 && group < count) {
    work.columns = !listed_keys ? RowList{nullptr, group * key_rows, key_rows} : segment(found + 1);
  }
  return work;
}

// The list of an image's corrupted tokens and then its known tokens, each in ascending order. One block of threads;
// consecutive tokens per warp, so that its lanes read neighbouring bytes. of_warp (threads / 32) is in shared memory.
// Returns the number of corrupted tokens.
template <typename Hole>
__device__ int list_corrupted_first(Hole hole, int first, int tokens, int* of_warp, int* order) {
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = warp_lane();
  const int each = static_cast<int>(round_up(divide_up(tokens, warps), 32));
  const int begin = min(tokens, warp * each), end = min(tokens, begin + each);
  int mine = 0;
#pragma unroll 4
  for (int from = begin; from < end; from += 32) mine += from + lane < end && hole[from + lane];
  mine = warp_reduce<Sum>(mine);
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  int before = 0, corrupted = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += of_warp[w];
    corrupted += of_warp[w];
  }
#pragma unroll 4
  for (int from = begin; from < end; from += 32) {
    const int i = from + lane;
    const bool here = i < end && hole[i];
    const unsigned found = __ballot_sync(0xffffffffu, here);
    const int rank = before + __popc(found & ((1u << lane) - 1));
    if (i < end) order[here ? rank : corrupted + i - rank] = first + i;
    before += __popc(found);
  }
  return corrupted;
}

// A stable counting sort by region, with region -1 last. Each block takes consecutive tokens, each warp a consecutive
// part of them. Counts are integers, so the order of the atomic additions does not change the result.

// The bin of a region: the region itself, or the last of regions + 1 bins for -1 and any other value out of range.
__device__ inline int bin_of(int64_t region, int regions) {
  return region < 0 || region >= regions ? regions : static_cast<int>(region);
}

// counts (warps, regions + 1), in shared memory: the number of tokens per bin in each warp's part.
__device__ inline void count_regions(const int64_t* region, int tokens, int regions, int* counts) {
  const int bins = regions + 1, warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int i = threadIdx.x; i < warps * bins; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  const int each = divide_up(tokens, warps);
  const int end = min((warp + 1) * each, tokens);
  for (int i = warp * each + warp_lane(); i < end; i += 32)
    atomicAdd(&counts[warp * bins + bin_of(region[i], regions)], 1);
  __syncthreads();
}

// Write the tokens first ... first + tokens - 1 to their places in `order`, which all blocks fill together. bounds
// (regions + 2), in shared memory, gets the start of each bin, and the end of the last one. of_blocks (blocks,
// regions + 1) holds the counts of all blocks; it is null when there is one block.
__device__ inline void sort_by_region(const int64_t* region, int first, int tokens, int regions, const int* of_blocks,
                                      int* counts, int* bounds, int* order) {
  const int bins = regions + 1, warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = warp_lane();
  count_regions(region, tokens, regions, counts);
  // From here on, counts holds the position within a bin of each warp's next token.
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
    unsigned same = 0xffffffffu;  // Lanes whose token is in the same bin.
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

// Up to these sizes, each attention block sorts the tokens itself. That costs less than a separate launch.
constexpr int kSelfSorted = 1024, kSelfSortedRegions = 256;

// Number of ints of shared memory that a block needs to sort: `order`, `bounds` and the counts of its warps.
C10_HOST_DEVICE constexpr int64_t sort_ints(int64_t tokens, int64_t regions, int64_t warps) {
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
