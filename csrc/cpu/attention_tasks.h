// How attention.cpp and attention_bf16.cpp divide their work into tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "attention.h"

namespace showface {

struct TileIndex {
  int64_t group, tile;
};

// The tiles of all groups, in order. Groups without keys have none.
template <typename G>
std::vector<TileIndex> all_tiles(const std::vector<G>& groups, int64_t tile_rows) {
  std::vector<TileIndex> tiles;
  for (size_t g = 0; g < groups.size(); ++g) {
    const int64_t count = groups[g].keys > 0 ? (groups[g].queries + tile_rows - 1) / tile_rows : 0;
    for (int64_t tile = 0; tile < count; ++tile) tiles.push_back({static_cast<int64_t>(g), tile});
  }
  return tiles;
}

// The tasks of a backward. One task is a range of chunks of one group's keys, and computes a partial gradient of all of
// the group's queries. There are about as many tasks as threads, so that few partial gradients have to be added. The
// partition depends only on the shapes and the number of threads, so repeated runs give the same bits.
struct BackwardTasks {
  struct Task {
    int64_t group, first_chunk, last_chunk;
    int64_t first_tile;  // of its partial gradient, among those of all tasks
  };
  std::vector<TileIndex> tiles;
  std::vector<int64_t> first_tile;  // of each group
  std::vector<Task> tasks;
  int64_t partial_tiles = 0;  // of all tasks

  template <typename G>
  BackwardTasks(const std::vector<G>& groups, int64_t tile_rows, int64_t chunk_keys)
      : tiles(all_tiles(groups, tile_rows)), first_tile(groups.size() + 1, 0) {
    for (const TileIndex& tile : tiles) ++first_tile[tile.group + 1];
    for (size_t g = 0; g < groups.size(); ++g) first_tile[g + 1] += first_tile[g];
    const auto group_count = static_cast<int64_t>(groups.size());
    const int64_t wanted = (torch::stable::get_num_threads() + group_count - 1) / group_count;
    for (int64_t g = 0; g < group_count; ++g) {
      const int64_t chunks = (groups[g].keys + chunk_keys - 1) / chunk_keys, count = std::min(chunks, wanted);
      for (int64_t i = 0; i < count; ++i) {
        tasks.push_back({g, chunks * i / count, chunks * (i + 1) / count, partial_tiles});
        partial_tiles += tiles_of(g);
      }
    }
  }

  int64_t tiles_of(int64_t group) const { return first_tile[group + 1] - first_tile[group]; }

  // The partial gradients of a group, if those of a tile have `tile_size` elements.
  template <typename T>
  std::vector<std::vector<const T*>> partials(const T* data, int64_t tile_size) const {
    std::vector<std::vector<const T*>> of_group(first_tile.size() - 1);
    for (const Task& task : tasks) of_group[task.group].push_back(data + task.first_tile * tile_size);
    return of_group;
  }
};

}  // namespace showface
