// Cosine attention on the CPU.
//
// The queries of a group are divided into tiles, its keys into chunks. Only the weights of one tile and one chunk are
// stored at a time. A task of the forward is one tile of queries, a task of the backward a range of chunks of keys.
#include "attention.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "attention_tasks.h"
#include "dispatch.h"

namespace showface {
namespace {

constexpr int64_t kTileRows = 64;  // Queries per tile.
constexpr int64_t kChunk = 256;    // Keys per chunk.

inline float binary_logarithm(float x) { return std::log2(x); }

// glibc has had its present log2 of a double since version 2.29, and that of a long double always. So the extension
// loads with an older glibc too. There is one logarithm per query, so its time does not show.
inline double binary_logarithm(double x) { return static_cast<double>(std::log2(static_cast<long double>(x))); }

// A tile of queries, packed for the backward.
template <typename T>
struct Tile {
  T *query_columns, *query_rows;  // temperature * unit query, in panels: transposed, and by rows
  T *grad_columns, *grad_rows;    // the gradient of the outputs, in the same two layouts
  T *lse, *delta;                 // (rows): lse, and <grad, out>
};

// The kernels, compiled once per instruction set.
#define SHOWFACE_VECTOR_BYTES 16
namespace baseline {
#include "tiles.h"
#include "attention_tiles.h"
}  // namespace baseline
#undef SHOWFACE_VECTOR_BYTES

#if SHOWFACE_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SHOWFACE_VECTOR_BYTES 32
namespace avx2 {
#include "tiles.h"
#include "attention_tiles.h"
}  // namespace avx2
#undef SHOWFACE_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#define SHOWFACE_VECTOR_BYTES 64
namespace avx512 {
#include "tiles.h"
#include "attention_tiles.h"
}  // namespace avx512
#undef SHOWFACE_VECTOR_BYTES
#pragma GCC pop_options
#endif

// The kernels for the best instruction set of this processor.
template <typename T>
struct Kernels {
  int64_t lanes;
  void (*inverse_norms)(const T* const*, int64_t, int64_t, T*);
  void (*forward_tile)(const Group<T>&, int64_t, const T*, T*);
  void (*prepare_tile)(const Group<T>&, int64_t, const Tile<T>&, T*);
  void (*backward_chunk)(const Group<T>&, int64_t, const Tile<T>*, int64_t, T*, T*);
  void (*query_gradients)(const Group<T>&, int64_t, const std::vector<const T*>&, int64_t, T*, double*);
  void (*accumulate_group)(const Group<T>&, T*);

#define SHOWFACE_KERNELS(set)                                                                      \
  {set::Simd<T>::kLanes,   set::inverse_norms<T>,   set::forward_tile<T>,    set::prepare_tile<T>, \
   set::backward_chunk<T>, set::query_gradients<T>, set::accumulate_group<T>}
  static Kernels best() {
#if SHOWFACE_X86
    if (best_instruction_set() >= InstructionSet::avx512) return SHOWFACE_KERNELS(avx512);
    if (best_instruction_set() >= InstructionSet::avx2) return SHOWFACE_KERNELS(avx2);
#endif
    return SHOWFACE_KERNELS(baseline);
  }
#undef SHOWFACE_KERNELS
};

}  // namespace

template <typename T>
void attend(const std::vector<Group<T>>& groups) {
  if (groups.empty()) return;
  const auto kernels = Kernels<T>::best();
  const auto tiles = all_tiles(groups, kTileRows);
  const int64_t wide = groups[0].values + kernels.lanes;
  const int64_t scratch = kTileRows * (2 * groups[0].channels + kChunk + wide + 2) + kChunk * wide + 64;
  // Norms of the keys. A group with several tiles needs them in several tasks, so they are computed in advance. A group
  // with one tile computes them in its only task, so that its keys are read from memory once.
  std::vector<int64_t> first_key(groups.size() + 1, 0);
  for (size_t g = 0; g < groups.size(); ++g) first_key[g + 1] = first_key[g] + groups[g].keys;
  const Buffer<T> norms(first_key.back());
  const auto find_norms = [&](int64_t g) {
    kernels.inverse_norms(groups[g].key_rows, groups[g].keys, groups[g].channels, norms.get() + first_key[g]);
  };
  const auto alone = [&](int64_t g) { return groups[g].queries <= kTileRows; };
  torch::stable::parallel_for(0, static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      if (!alone(g)) find_norms(g);
    }
  });
  run_tasks<T>(static_cast<int64_t>(tiles.size()), scratch, [&](int64_t i, T* memory) {
    const auto [g, tile] = tiles[i];
    if (alone(g)) find_norms(g);
    kernels.forward_tile(groups[g], tile, norms.get() + first_key[g], memory);
  });
}

template <typename T>
double attend_backward(const std::vector<Group<T>>& groups) {
  if (groups.empty()) return 0;
  const auto kernels = Kernels<T>::best();
  const int64_t channels = groups[0].channels, values = groups[0].values;
  const int64_t key_columns = round_up(channels, kernels.lanes), value_columns = round_up(values, kernels.lanes);
  const int64_t tile_size = kTileRows * (channels + key_columns + values + value_columns + 2);

  const BackwardTasks work(groups, kTileRows, kChunk);
  const auto tile_count = static_cast<int64_t>(work.tiles.size());
  const Buffer<T> laid_out(tile_count * tile_size);
  std::vector<Tile<T>> tiles(tile_count);
  run_tasks<T>(tile_count, kTileRows * (channels + values), [&](int64_t i, T* scratch) {
    Tile<T>& tile = tiles[i];
    T* at = laid_out.get() + i * tile_size;
    const auto take = [&](int64_t width) { return std::exchange(at, at + kTileRows * width); };
    tile.query_columns = take(channels);
    tile.query_rows = take(key_columns);
    tile.grad_columns = take(values);
    tile.grad_rows = take(value_columns);
    tile.lse = take(1);
    tile.delta = take(1);
    kernels.prepare_tile(groups[work.tiles[i].group], work.tiles[i].tile, tile, scratch);
  });

  const int64_t partial_size = kTileRows * key_columns;
  const Buffer<T> partial_grads(work.partial_tiles * partial_size);
  const int64_t scratch = kChunk * (2 * kTileRows + 2 * (channels + kernels.lanes) + values + kernels.lanes + 1) + 64;
  run_tasks<T>(static_cast<int64_t>(work.tasks.size()), scratch, [&](int64_t i, T* memory) {
    const auto& task = work.tasks[i];
    T* grad_query = partial_grads.get() + task.first_tile * partial_size;
    std::fill_n(grad_query, work.tiles_of(task.group) * partial_size, T(0));
    for (int64_t chunk = task.first_chunk; chunk < task.last_chunk; ++chunk) {
      kernels.backward_chunk(groups[task.group], chunk * kChunk, tiles.data() + work.first_tile[task.group],
                             work.tiles_of(task.group), grad_query, memory);
    }
  });

  const auto of_group = work.partials<T>(partial_grads.get(), partial_size);
  std::vector<double> by_tile(tile_count);
  run_tasks<T>(tile_count, key_columns, [&](int64_t i, T* sum) {
    const auto [g, tile] = work.tiles[i];
    kernels.query_gradients(groups[g], tile, of_group[g], key_columns, sum, &by_tile[i]);
  });
  double total = 0;
  for (double part : by_tile) total += part;
  return total;
}

template <typename T>
void accumulate(const std::vector<Group<T>>& groups) {
  if (groups.empty()) return;
  const auto kernels = Kernels<T>::best();
  const int64_t columns = groups[0].channels + 1 + kernels.lanes, keys = round_up(groups[0].keys, 8);
  const int64_t scratch = keys * (kTileRows + columns + 1) + kTileRows * (2 * columns + 2) + 64;
  run_tasks<T>(static_cast<int64_t>(groups.size()), scratch,
               [&](int64_t i, T* memory) { kernels.accumulate_group(groups[i], memory); });
}

#define SHOWFACE_INSTANTIATE(T)                                     \
  template void attend<T>(const std::vector<Group<T>>&);            \
  template double attend_backward<T>(const std::vector<Group<T>>&); \
  template void accumulate<T>(const std::vector<Group<T>>&);
SHOWFACE_INSTANTIATE(float)
SHOWFACE_INSTANTIATE(double)
#undef SHOWFACE_INSTANTIATE

}  // namespace showface
