// Cosine attention on the CPU in bfloat16, for masked_correlation.
//
// As in attention.cpp, queries are divided into tiles and keys into chunks.
#include "attention.h"
#include "attention_tasks.h"
#include "dispatch.h"

#if SHOWFACE_X86_BF16

// GCC 12 takes the unused operand of many AVX-512 intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>
#include <limits>
#include <utility>

namespace showface {
namespace {

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,prefer-vector-width=512")
namespace bf16 {

#include "bf16_tiles.h"
#include "attention_bf16_tiles.h"

struct Kernels {
  void (*start)();
  void (*finish)();
  void (*forward_tile)(const Bf16Group&, int64_t, const KeysAndValues&, float*);
  void (*backward_chunk)(const Bf16Group&, int64_t, const Tile*, int64_t, float*, float*);
};

template <typename Isa>
constexpr Kernels kKernels{Isa::start, Isa::finish, forward_tile<Isa>, backward_chunk<Isa>};

}  // namespace bf16
#pragma GCC pop_options

const bf16::Kernels& best() {
  return best_instruction_set() == InstructionSet::amx ? bf16::kKernels<bf16::Amx> : bf16::kKernels<bf16::Avx512Bf16>;
}

// A task's use of the kernels, see Amx::start.
class Started {
 public:
  explicit Started(const bf16::Kernels& kernels) : kernels_(kernels) { kernels_.start(); }
  ~Started() { kernels_.finish(); }

 private:
  const bf16::Kernels& kernels_;
};

}  // namespace

bool has_bf16() { return best_instruction_set() >= InstructionSet::avx512_bf16; }

void attend(const std::vector<Group<BFloat16, float>>& groups) {
  using namespace bf16;
  if (groups.empty()) return;
  const auto& kernels = best();
  const int64_t channels = padded(groups[0].channels), values = padded(groups[0].values);
  const auto tiles = all_tiles(groups, kRows);
  struct Chunk {
    int64_t group, first_key;
  };
  std::vector<Chunk> chunks;
  std::vector<int64_t> first_key(groups.size() + 1, 0);
  for (size_t g = 0; g < groups.size(); ++g) {
    first_key[g + 1] = first_key[g] + padded(groups[g].keys);
    for (int64_t key = 0; key < groups[g].keys; key += kForwardKeys) chunks.push_back({static_cast<int64_t>(g), key});
  }
  const Buffer<Bits> keys(first_key.back() * channels), packed_values(first_key.back() * values);
  const Buffer<float> norms(first_key.back());
  const auto packed = [&](int64_t g) {
    const int64_t at = first_key[g];
    return KeysAndValues{keys.get() + at * channels, packed_values.get() + at * values, norms.get() + at};
  };
  run_tasks<float>(static_cast<int64_t>(chunks.size()), 0, [&](int64_t i, float*) {
    const auto [g, key] = chunks[i];
    pack_chunk(groups[g], key, packed(g));
  });
  run_tasks<float>(static_cast<int64_t>(tiles.size()), forward_scratch(groups[0]), [&](int64_t i, float* memory) {
    const auto [g, tile] = tiles[i];
    const Started started(kernels);
    kernels.forward_tile(groups[g], tile, packed(g), memory);
  });
}

double attend_backward(const std::vector<Group<BFloat16, float>>& groups) {
  using namespace bf16;
  if (groups.empty()) return 0;
  const auto& kernels = best();
  const BackwardTasks work(groups, kRows, kBackwardKeys);
  const auto tile_count = static_cast<int64_t>(work.tiles.size());
  const int64_t tile_bytes = Tile::bytes(groups[0]);
  const Buffer<char> laid_out(tile_count * tile_bytes);
  std::vector<Tile> tiles(tile_count);
  run_tasks<float>(tile_count, 0, [&](int64_t i, float*) {
    const auto [g, tile] = work.tiles[i];
    prepare_tile(groups[g], tile, &tiles[i], laid_out.get() + i * tile_bytes);
  });
  const int64_t partial_size = kRows * padded(groups[0].channels);
  const Buffer<float> partial_grads(work.partial_tiles * partial_size);
  run_tasks<float>(static_cast<int64_t>(work.tasks.size()), backward_scratch(groups[0]), [&](int64_t i, float* memory) {
    const auto& task = work.tasks[i];
    const Bf16Group& group = groups[task.group];
    float* grad_query = partial_grads.get() + task.first_tile * partial_size;
    std::fill_n(grad_query, work.tiles_of(task.group) * partial_size, 0.0f);
    kernels.start();
    for (int64_t chunk = task.first_chunk; chunk < task.last_chunk; ++chunk) {
      kernels.backward_chunk(group, chunk * kBackwardKeys, tiles.data() + work.first_tile[task.group],
                             work.tiles_of(task.group), grad_query, memory);
    }
    kernels.finish();
  });
  const auto of_group = work.partials<float>(partial_grads.get(), partial_size);
  std::vector<double> by_tile(tile_count);
  run_tasks<float>(tile_count, kLanes * padded(groups[0].channels), [&](int64_t i, float* scratch) {
    const auto [g, tile] = work.tiles[i];
    by_tile[i] = query_gradients(groups[g], tile, of_group[g], scratch);
  });
  double total = 0;
  for (double part : by_tile) total += part;
  return total;
}

}  // namespace showface

#else

namespace showface {

bool has_bf16() { return false; }
void attend(const std::vector<Group<BFloat16, float>>&) { STD_TORCH_CHECK(false, "showface: no kernels for bfloat16"); }
double attend_backward(const std::vector<Group<BFloat16, float>>& groups) { return attend(groups), 0; }

}  // namespace showface

#endif
