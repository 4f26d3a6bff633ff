// masked_correlation for one tile of corrupted tokens, on the vectors of one instruction set. Like tiles.h this file is
// included once for each set.
//
// Correlations are kept transposed, keys by rows: so keys and values are read where they lie, row by row through their
// index, and only the few corrupted tokens of a tile are laid out anew.

// Corrupted tokens of an image, `kTileRows` at a time; the last tile is filled up with zeros to whole vectors.
template <typename T>
int64_t rows_of_tile(const Sample<T>& sample, int64_t tile) {
  constexpr int64_t lanes = std::max<int64_t>(Simd<T>::kLanes, kRows);
  const int64_t rows = std::min(kTileRows, sample.queries - tile * kTileRows);
  return round_up(rows, lanes);
}

// correlation (keys, rows) = <key, column of `queries`>, keys first, first + 1, ...
template <typename T>
void correlate(const Panels<T>& queries, const T* const* keys, int64_t count, T* correlation) {
  queries.template times<false>([&](int64_t j) { return keys[j]; }, 1, count, correlation, queries.columns);
}

// correlation = 2 ** (correlation * inverse_norm[key] - shift[row]); rows of keys past `count` become 0.
template <typename T>
void exponentiate(T* correlation, const T* inverse_norm, const T* shift, int64_t count, int64_t padded, int64_t rows,
                  T* sum) {
  using S = Simd<T>;
  for (int64_t r = 0; r < rows; r += S::kLanes) {
    const auto shifts = S::load(shift + r);
    typename S::Vector total{};
    T* at = correlation + r;
    for (int64_t j = 0; j < count; ++j, at += rows) {
      const auto power = S::exp2(S::load(at) * inverse_norm[j] - shifts);
      S::store(at, power);
      total += power;
    }
    for (int64_t j = count; j < padded; ++j, at += rows) S::store(at, typename S::Vector{});
    if (sum != nullptr) S::store(sum + r, S::load(sum + r) + total);
  }
}

// The answer to the corrupted tokens of one tile, and the logarithm (to base 2) of the sum under their softmax.
template <typename T>
void forward_tile(const Sample<T>& sample, int64_t tile, T* scratch) {
  using S = Simd<T>;
  const int64_t rows = rows_of_tile(sample, tile), first = tile * kTileRows;
  const int64_t real = std::min(rows, sample.queries - first), width = sample.values;
  const int64_t value_columns = round_up(width, S::kLanes);
  T* query = scratch;                                   // (rows, channels)
  T* panels = query + kTileRows * sample.channels;      // the same, transposed, in panels
  T* correlation = panels + kTileRows * sample.channels;  // (keys of a chunk, rows)
  T* value_panels = correlation + kChunk * kTileRows;   // (keys of a chunk, value_columns)
  T* mixed = value_panels + kChunk * (width + S::kLanes);  // (rows, value_columns)
  T* shift = mixed + kTileRows * (width + S::kLanes);
  T* sum = shift + kTileRows;

  sample.unit_queries(first, rows, sample.temperature * T(kLog2E), query);
  pack_columns([&](int64_t r) { return query + r * sample.channels; }, sample.channels, rows, panels);
  const Panels<T> queries{panels, sample.channels, rows};
  std::fill(sum, sum + rows, T(0));
  std::fill(mixed, mixed + rows * value_columns, T(0));

  // A correlation is at most the temperature: subtracting that is enough, unless it is so high that a row of small
  // correlations would vanish. Then the largest one is looked for first.
  std::fill(shift, shift + rows, sample.temperature * T(kLog2E));
  if (sample.temperature > (sizeof(T) == 4 ? 40 : 300)) {
    std::fill(shift, shift + rows, -std::numeric_limits<T>::infinity());
    for (int64_t chunk = 0; chunk < sample.keys; chunk += kChunk) {
      const int64_t count = std::min(kChunk, sample.keys - chunk), padded = round_up(count, kRows);
      correlate(queries, sample.key_rows + chunk, padded, correlation);
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t r = 0; r < rows; ++r) {
          shift[r] = std::max(shift[r], correlation[j * rows + r] * sample.inverse_norm[chunk + j]);
        }
      }
    }
  }

  for (int64_t chunk = 0; chunk < sample.keys; chunk += kChunk) {
    const int64_t count = std::min(kChunk, sample.keys - chunk), padded = round_up(count, kRows);
    correlate(queries, sample.key_rows + chunk, padded, correlation);
    exponentiate(correlation, sample.inverse_norm + chunk, shift, count, padded, rows, sum);
    const T* const* value = sample.value_rows + chunk;
    pack_rows([&](int64_t j) { return value[j]; }, count, width, value_columns, value_panels);
    const Panels<T> values{value_panels, count, value_columns};
    values.template times<true>([&](int64_t r) { return correlation + r; }, rows, rows, mixed, value_columns);
  }
  for (int64_t r = 0; r < real; ++r) {
    T* out = sample.out + sample.query_index[first + r] * width;
    const T scale = T(1) / sum[r];
    for (int64_t c = 0; c < width; ++c) out[c] = mixed[r * value_columns + c] * scale;
    sample.log_sum[sample.query_index[first + r]] = shift[r] + std::log2(sum[r]);
  }
}

// What the backward needs of a tile, laid out once for all chunks of keys.
template <typename T>
void prepare_tile(const Sample<T>& sample, int64_t tile, const Tile<T>& to, T* scratch) {
  using S = Simd<T>;
  const int64_t rows = rows_of_tile(sample, tile), first = tile * kTileRows;
  const int64_t real = std::min(rows, sample.queries - first), channels = sample.channels, width = sample.values;
  T* query = scratch;                            // (rows, channels)
  T* grad = query + kTileRows * channels;        // (rows, values)
  sample.unit_queries(first, rows, sample.temperature, query);
  std::fill(grad, grad + rows * width, T(0));
  for (int64_t r = 0; r < rows; ++r) {
    T delta = 0;
    if (r < real) {
      const int64_t at = sample.query_index[first + r];
      std::copy(sample.grad + at * width, sample.grad + (at + 1) * width, grad + r * width);
      for (int64_t c = 0; c < width; ++c) delta += grad[r * width + c] * sample.out[at * width + c];
    }
    to.delta[r] = delta;
    // No correlation of a row that only fills up may count: its exponentials become 0.
    to.shift[r] = r < real ? sample.log_sum[sample.query_index[first + r]] : std::numeric_limits<T>::max();
  }
  const auto query_row = [&](int64_t r) { return query + r * channels; };
  const auto grad_row = [&](int64_t r) { return grad + r * width; };
  pack_columns(query_row, channels, rows, to.query_columns);
  pack_columns(grad_row, width, rows, to.grad_columns);
  pack_rows(query_row, rows, channels, round_up(channels, S::kLanes), to.query_rows);
  pack_rows(grad_row, rows, width, round_up(width, S::kLanes), to.grad_rows);
}

// The gradients of one chunk of keys and values, and its share in those of the queries (grad_query, which adds up).
template <typename T>
void backward_chunk(const Sample<T>& sample, int64_t chunk, const Tile<T>* tiles, int64_t tile_count, T* grad_query,
                    T* scratch) {
  using S = Simd<T>;
  const int64_t count = std::min(kChunk, sample.keys - chunk), keys = round_up(count, kRows);
  const int64_t channels = sample.channels, key_columns = round_up(channels, S::kLanes), value_columns = round_up(sample.values, S::kLanes);
  T* correlation = scratch;                          // (keys, rows)
  T* gradient = correlation + kChunk * kTileRows;    // of it
  T* key_panels = gradient + kChunk * kTileRows;     // (count, key_columns)
  T* grad_key = key_panels + kChunk * (channels + S::kLanes);
  T* grad_value = grad_key + kChunk * (channels + S::kLanes);
  std::fill(grad_key, grad_key + keys * key_columns, T(0));
  std::fill(grad_value, grad_value + keys * value_columns, T(0));
  const T* const* key = sample.key_rows + chunk;
  const T* inverse_norm = sample.inverse_norm + chunk;
  pack_rows([&](int64_t j) { return key[j]; }, count, channels, key_columns, key_panels);

  for (int64_t t = 0; t < tile_count; ++t) {
    const Tile<T>& tile = tiles[t];
    const int64_t rows = rows_of_tile(sample, t);
    const Panels<T> query_columns{tile.query_columns, channels, rows}, grad_columns{tile.grad_columns, sample.values, rows};
    correlate(query_columns, key, keys, correlation);
    correlate(grad_columns, sample.value_rows + chunk, keys, gradient);
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t r = 0; r < rows; r += S::kLanes) {
        T *at = correlation + j * rows + r, *grad = gradient + j * rows + r;
        if (j >= count) {
          S::store(at, typename S::Vector{});
          S::store(grad, typename S::Vector{});
          continue;
        }
        const auto power = S::exp2(S::load(at) * (inverse_norm[j] * T(kLog2E)) - S::load(tile.shift + r));
        S::store(at, power);
        S::store(grad, power * (S::load(grad) - S::load(tile.delta + r)));
      }
    }
    const Panels<T> grad_rows{tile.grad_rows, rows, value_columns}, query_rows{tile.query_rows, rows, key_columns};
    grad_rows.template times<true>([&](int64_t j) { return correlation + j * rows; }, 1, keys, grad_value, value_columns);
    query_rows.template times<true>([&](int64_t j) { return gradient + j * rows; }, 1, keys, grad_key, key_columns);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t r = 0; r < rows; ++r) gradient[j * rows + r] *= inverse_norm[j];
    }
    const Panels<T> keys_by_row{key_panels, count, key_columns};
    keys_by_row.template times<true>([&](int64_t r) { return gradient + r; }, rows, rows,
                                     grad_query + t * kTileRows * key_columns, key_columns);
  }
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = sample.key_index[chunk + j];
    unit_gradient(key[j], inverse_norm[j], grad_key + j * key_columns, channels, sample.grad_key + at * channels);
    std::copy(grad_value + j * value_columns, grad_value + j * value_columns + sample.values,
              sample.grad_value + at * sample.values);
  }
}
