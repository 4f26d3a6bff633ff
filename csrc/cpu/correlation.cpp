// masked_correlation on the CPU: float32 and float64, forward and backward.
//
// An image's corrupted tokens are cut into tiles, its keys into chunks; the correlations of a tile with a chunk are all
// that is ever stored. In the forward a task is a tile, in the backward a share of the chunks.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common/correlation.h"
#include "dispatch.h"

namespace showface {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
constexpr int64_t kTileRows = 64;  // corrupted tokens of a tile
constexpr int64_t kChunk = 256;    // keys of a chunk

// One image: who asks, who answers, and where the results go.
template <typename T>
struct Sample {
  int64_t queries, keys, channels, values;
  T temperature;
  const T *query, *grad;       // (N, C), (N, Cv)
  const T* const* key_rows;    // (keys), filled up to a multiple of kRows with a row that exists
  const T* const* value_rows;  // the same
  const T* inverse_norm;       // (keys)
  const int64_t *query_index, *key_index;
  T *out, *log_sum;            // (N, Cv), (N)
  T *grad_key, *grad_value;    // (N, C), (N, Cv)

  // rows of `to` (rows, C) = factor * unit(query); zeros for rows that only fill a tile up.
  void unit_queries(int64_t first, int64_t rows, T factor, T* to) const;
};

// A tile laid out for the backward.
template <typename T>
struct Tile {
  T *query_columns, *query_rows;  // temperature * unit query, in panels: by columns and by rows
  T *grad_columns, *grad_rows;    // the same of the gradient of the answers
  T *shift, *delta;               // (rows): log_sum, and <grad, out>
};

template <typename T>
T inverse_norm_of(const T* x, int64_t n) {
  T square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) square += x[i] * x[i];
  return T(1) / std::max(std::sqrt(square), T(kMinNorm));
}

template <typename T>
void Sample<T>::unit_queries(int64_t first, int64_t rows, T factor, T* to) const {
  for (int64_t r = 0; r < rows; ++r) {
    if (first + r >= queries) {
      std::fill(to + r * channels, to + (r + 1) * channels, T(0));
      continue;
    }
    const T* from = query + query_index[first + r] * channels;
    const T scale = factor * inverse_norm_of(from, channels);
    for (int64_t c = 0; c < channels; ++c) to[r * channels + c] = from[c] * scale;
  }
}

// The gradient of x from that of unit(x).
template <typename T>
void unit_gradient(const T* x, T inverse_norm, const T* grad, int64_t n, T* to) {
  T along = 0;
  if (inverse_norm < T(1 / kMinNorm)) {
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < n; ++i) along += x[i] * grad[i];
    along *= inverse_norm * inverse_norm;
  }
  for (int64_t i = 0; i < n; ++i) to[i] = (grad[i] - x[i] * along) * inverse_norm;
}

// The kernels, once for each instruction set.
#define SHOWFACE_VECTOR_BYTES 16
namespace baseline {
#include "tiles.h"
#include "correlation_tiles.h"
}  // namespace baseline
#undef SHOWFACE_VECTOR_BYTES

#if SHOWFACE_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SHOWFACE_VECTOR_BYTES 32
namespace avx2 {
#include "tiles.h"
#include "correlation_tiles.h"
}  // namespace avx2
#undef SHOWFACE_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#define SHOWFACE_VECTOR_BYTES 64
namespace avx512 {
#include "tiles.h"
#include "correlation_tiles.h"
}  // namespace avx512
#undef SHOWFACE_VECTOR_BYTES
#pragma GCC pop_options
#endif

// The kernels of the best instruction set here.
template <typename T>
struct Kernels {
  int64_t lanes;
  void (*forward_tile)(const Sample<T>&, int64_t, T*);
  void (*prepare_tile)(const Sample<T>&, int64_t, const Tile<T>&, T*);
  void (*backward_chunk)(const Sample<T>&, int64_t, const Tile<T>*, int64_t, T*, T*);

  static Kernels best() {
#if SHOWFACE_X86
    switch (best_instruction_set()) {
      case InstructionSet::avx512:
        return {64 / sizeof(T), avx512::forward_tile<T>, avx512::prepare_tile<T>, avx512::backward_chunk<T>};
      case InstructionSet::avx2:
        return {32 / sizeof(T), avx2::forward_tile<T>, avx2::prepare_tile<T>, avx2::backward_chunk<T>};
      default: break;
    }
#endif
    return {16 / sizeof(T), baseline::forward_tile<T>, baseline::prepare_tile<T>, baseline::backward_chunk<T>};
  }
};

// Uninitialised numbers, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (std::max<int64_t>(size, 1) * sizeof(T) + 63) / 64 * 64))) {
    STD_TORCH_CHECK(data_ != nullptr, "masked_correlation: out of memory");
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

// Run task(i, scratch) for i in 0 .. count - 1 on torch's threads, each as soon as one is free.
template <typename T, typename Task>
void run_tasks(int64_t count, int64_t scratch_size, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(scratch_size);
    for (; begin < end; ++begin) {
      for (int64_t i = next++; i < count; i = next++) task(i, scratch.get());
    }
  });
}

// The images of a batch with their index lists.
template <typename T>
class Batch {
 public:
  Batch(const CorrelationShape& shape, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hole,
        T temperature, bool all_keys)
      : index_(2 * shape.batch * shape.tokens), rows_(2 * shape.batch * (shape.tokens + kFill)),
        norms_(shape.batch * shape.tokens), samples_(shape.batch) {
    const auto* holes = static_cast<const bool*>(hole.const_data_ptr());
    const auto* queries = static_cast<const T*>(query.const_data_ptr());
    const auto* keys = static_cast<const T*>(key.const_data_ptr());
    const auto* values = static_cast<const T*>(value.const_data_ptr());
    const int64_t n = shape.tokens;
    torch::stable::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        Sample<T>& sample = samples_[b];
        sample = {};
        int64_t *query_index = index_.data() + 2 * b * n, *key_index = query_index + n;
        const T** key_rows = rows_.data() + 2 * b * (n + kFill);
        const T** value_rows = key_rows + n + kFill;
        T* norms = norms_.get() + b * n;
        for (int64_t i = 0; i < n; ++i) {
          const bool corrupted = holes[b * n + i];
          if (corrupted) query_index[sample.queries++] = i;
          if (!corrupted || all_keys) {
            key_rows[sample.keys] = keys + (b * n + i) * shape.channels;
            value_rows[sample.keys] = values + (b * n + i) * shape.values;
            key_index[sample.keys++] = i;
          }
        }
        if (sample.keys == 0 || sample.queries == 0) sample.queries = sample.keys = 0;
        for (int64_t j = 0; j < sample.keys; ++j) norms[j] = inverse_norm_of(key_rows[j], shape.channels);
        for (int64_t j = sample.keys; sample.keys != 0 && j < sample.keys + kFill; ++j) {
          key_rows[j] = key_rows[0];
          value_rows[j] = value_rows[0];
        }
        sample.channels = shape.channels;
        sample.values = shape.values;
        sample.temperature = temperature;
        sample.query = queries + b * n * shape.channels;
        sample.key_rows = key_rows;
        sample.value_rows = value_rows;
        sample.inverse_norm = norms;
        sample.query_index = query_index;
        sample.key_index = key_index;
      }
    });
  }
  std::vector<Sample<T>>& samples() { return samples_; }

 private:
  static constexpr int64_t kFill = 8;
  std::vector<int64_t> index_;
  std::vector<const T*> rows_;
  Buffer<T> norms_;
  std::vector<Sample<T>> samples_;
};

int64_t tiles_of(int64_t queries) { return (queries + kTileRows - 1) / kTileRows; }

template <typename T>
void forward(const CorrelationShape& shape, Batch<T>& batch, T* out, T* log_sum) {
  std::vector<std::pair<const Sample<T>*, int64_t>> tasks;
  auto& samples = batch.samples();
  for (int64_t b = 0; b < shape.batch; ++b) {
    samples[b].out = out + b * shape.tokens * shape.values;
    samples[b].log_sum = log_sum + b * shape.tokens;
    for (int64_t tile = 0; tile < tiles_of(samples[b].queries); ++tile) tasks.emplace_back(&samples[b], tile);
  }
  const auto kernels = Kernels<T>::best();
  const int64_t wide = shape.values + kernels.lanes;
  const int64_t scratch = kTileRows * (2 * shape.channels + kChunk + wide + 2) + kChunk * wide + 64;
  run_tasks<T>(static_cast<int64_t>(tasks.size()), scratch, [&](int64_t i, T* memory) {
    kernels.forward_tile(*tasks[i].first, tasks[i].second, memory);
  });
}

// Chunks of an image's keys that one task takes, and the gradient of the queries that it gives.
template <typename T>
struct Share {
  int64_t sample, first_chunk, last_chunk;
  T* grad_query;  // (tiles * kTileRows, key_columns)
};

template <typename T>
void backward(const CorrelationShape& shape, Batch<T>& batch, const T* grad, T* out, T* log_sum, T* grad_query,
              T* grad_key, T* grad_value, T* grad_temperature) {
  const auto kernels = Kernels<T>::best();
  const int64_t key_columns = round_up(shape.channels, kernels.lanes), value_columns = round_up(shape.values, kernels.lanes);
  const int64_t tile_size = kTileRows * (shape.channels + key_columns + shape.values + value_columns + 2);
  auto& samples = batch.samples();

  std::vector<std::pair<int64_t, int64_t>> tasks;  // sample, tile
  std::vector<int64_t> first_tile;
  for (int64_t b = 0; b < shape.batch; ++b) {
    Sample<T>& sample = samples[b];
    sample.grad = grad + b * shape.tokens * shape.values;
    sample.out = out + b * shape.tokens * shape.values;
    sample.log_sum = log_sum + b * shape.tokens;
    sample.grad_key = grad_key + b * shape.tokens * shape.channels;
    sample.grad_value = grad_value + b * shape.tokens * shape.values;
    first_tile.push_back(static_cast<int64_t>(tasks.size()));
    for (int64_t tile = 0; tile < tiles_of(sample.queries); ++tile) tasks.emplace_back(b, tile);
  }
  const auto tile_count = static_cast<int64_t>(tasks.size());
  const Buffer<T> laid_out(tile_count * tile_size);
  std::vector<Tile<T>> tiles(tile_count);
  run_tasks<T>(tile_count, kTileRows * (shape.channels + shape.values), [&](int64_t i, T* scratch) {
    Tile<T>& tile = tiles[i];
    T* at = laid_out.get() + i * tile_size;
    const auto take = [&](int64_t width) { return std::exchange(at, at + kTileRows * width); };
    tile.query_columns = take(shape.channels);
    tile.query_rows = take(key_columns);
    tile.grad_columns = take(shape.values);
    tile.grad_rows = take(value_columns);
    tile.shift = take(1);
    tile.delta = take(1);
    kernels.prepare_tile(samples[tasks[i].first], tasks[i].second, tile, scratch);
  });

  // As many shares as there are threads, so that the queries' gradients are summed in few places. The split depends on
  // nothing but the shapes and the number of threads, so a run gives the same bits as the one before.
  std::vector<Share<T>> shares;
  int64_t rows = 0;
  const int64_t threads = torch::stable::get_num_threads();
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t chunks = (samples[b].keys + kChunk - 1) / kChunk;
    const int64_t count = std::min(chunks, (threads + shape.batch - 1) / shape.batch);
    for (int64_t i = 0; i < count; ++i) {
      shares.push_back({b, chunks * i / count, chunks * (i + 1) / count, nullptr});
      rows += tiles_of(samples[b].queries) * kTileRows;
    }
  }
  const Buffer<T> partial(rows * key_columns);
  T* place = partial.get();
  for (Share<T>& share : shares) {
    share.grad_query = place;
    place += tiles_of(samples[share.sample].queries) * kTileRows * key_columns;
  }
  const int64_t scratch =
      kChunk * (2 * kTileRows + 2 * (shape.channels + kernels.lanes) + shape.values + kernels.lanes) + 64;
  run_tasks<T>(static_cast<int64_t>(shares.size()), scratch, [&](int64_t i, T* memory) {
    const Share<T>& share = shares[i];
    const Sample<T>& sample = samples[share.sample];
    const int64_t count = tiles_of(sample.queries);
    std::fill(share.grad_query, share.grad_query + count * kTileRows * key_columns, T(0));
    for (int64_t chunk = share.first_chunk; chunk < share.last_chunk; ++chunk) {
      kernels.backward_chunk(sample, chunk * kChunk, tiles.data() + first_tile[share.sample], count, share.grad_query,
                             memory);
    }
  });

  // The shares together, through the unit vectors.
  std::vector<double> by_tile(tile_count);
  run_tasks<T>(tile_count, key_columns, [&](int64_t i, T* sum) {
    const auto [b, tile] = tasks[i];
    const Sample<T>& sample = samples[b];
    double total = 0;
    for (int64_t r = tile * kTileRows; r < std::min(sample.queries, (tile + 1) * kTileRows); ++r) {
      std::fill(sum, sum + shape.channels, T(0));
      for (const Share<T>& share : shares) {
        if (share.sample != b) continue;
        for (int64_t c = 0; c < shape.channels; ++c) sum[c] += share.grad_query[r * key_columns + c];
      }
      const T* x = sample.query + sample.query_index[r] * shape.channels;
      const T inverse_norm = inverse_norm_of(x, shape.channels);
      T along = 0;
      for (int64_t c = 0; c < shape.channels; ++c) {
        along += x[c] * sum[c];
        sum[c] *= sample.temperature;
      }
      total += along * inverse_norm;
      unit_gradient(x, inverse_norm, sum, shape.channels,
                    grad_query + (b * shape.tokens + sample.query_index[r]) * shape.channels);
    }
    by_tile[i] = total;
  });
  double total = 0;
  for (double part : by_tile) total += part;
  *grad_temperature = static_cast<T>(total);
}

double temperature_of(const std::optional<Tensor>& temperature, double scale) {
  if (!temperature.has_value()) return scale;
  return scale * load_scalar<double>(temperature->const_data_ptr(), temperature->scalar_type());
}

Tensor zeros(const Tensor& like, std::vector<int64_t> size) { return torch::stable::new_zeros(like, size); }

ScalarType check_type(const Tensor& query) {
  const ScalarType type = query.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "masked_correlation on the CPU takes float32 and float64");
  return type;
}

std::tuple<Tensor, Tensor> masked_correlation(const Tensor& query, const Tensor& key, const Tensor& value,
                                              const Tensor& hole, const std::optional<Tensor>& temperature,
                                              double scale, bool all_keys, bool) {
  const CorrelationShape shape = check_correlation(query, key, value, hole, temperature);
  const ScalarType type = check_type(query);
  Tensor out = zeros(value, {shape.batch, shape.tokens, shape.values});
  Tensor log_sum = zeros(value, {shape.batch, shape.tokens});
  const Tensor q = as_contiguous(query), k = as_contiguous(key), v = as_contiguous(value), h = as_contiguous(hole);
  const auto run = [&]<typename T>(T tau) {
    Batch<T> batch(shape, q, k, v, h, tau, all_keys);
    forward<T>(shape, batch, static_cast<T*>(out.mutable_data_ptr()), static_cast<T*>(log_sum.mutable_data_ptr()));
  };
  const double tau = temperature_of(temperature, scale);
  type == ScalarType::Float ? run(static_cast<float>(tau)) : run(tau);
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_correlation_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& hole,
    const Tensor& out, const Tensor& log_sum, const std::optional<Tensor>& temperature, double scale, bool all_keys, bool) {
  const CorrelationShape shape = check_correlation(query, key, value, hole, temperature);
  const ScalarType type = check_type(query);
  for (const Tensor* tensor : {&grad, &out, &log_sum}) {
    STD_TORCH_CHECK(tensor->scalar_type() == type && tensor->size(0) == shape.batch && tensor->size(1) == shape.tokens,
                    "masked_correlation_backward: grad, out and log_sum must go with query");
  }
  Tensor grad_query = zeros(query, {shape.batch, shape.tokens, shape.channels});
  Tensor grad_key = zeros(key, {shape.batch, shape.tokens, shape.channels});
  Tensor grad_value = zeros(value, {shape.batch, shape.tokens, shape.values});
  Tensor grad_temperature = zeros(query, {});
  const Tensor q = as_contiguous(query), k = as_contiguous(key), v = as_contiguous(value), h = as_contiguous(hole);
  const Tensor g = as_contiguous(grad), o = as_contiguous(out), l = as_contiguous(log_sum);
  const auto run = [&]<typename T>(T tau) {
    Batch<T> batch(shape, q, k, v, h, tau, all_keys);
    const auto data = [](const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); };
    backward<T>(shape, batch, data(g), data(o), data(l), data(grad_query), data(grad_key), data(grad_value),
                data(grad_temperature));
  };
  const double tau = temperature_of(temperature, scale);
  type == ScalarType::Float ? run(static_cast<float>(tau)) : run(tau);
  return {grad_query, grad_key, grad_value, grad_temperature};
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(showface_C, CPU, m) {
  m.impl("masked_correlation", TORCH_BOX(&showface::masked_correlation));
  m.impl("masked_correlation_backward", TORCH_BOX(&showface::masked_correlation_backward));
}
