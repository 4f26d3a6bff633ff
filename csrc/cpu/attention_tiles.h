// Cosine attention for one tile of a group's queries, with the vectors of one instruction set. Like tiles.h, this file
// is included once per instruction set.
//
// Weights are stored transposed, one row per key. Keys and values are then read in place, row by row through their
// pointers, and only the few queries of a tile are packed.

template <typename T>
T inverse_norm_of(const T* x, int64_t n) {
  using S = Simd<T>;
  typename S::Vector squares[2] = {};
  int64_t i = 0;
  for (; i + 2 * S::kLanes <= n; i += 2 * S::kLanes) {
    const auto a = S::load(x + i), b = S::load(x + i + S::kLanes);
    squares[0] += a * a;
    squares[1] += b * b;
  }
  squares[0] += squares[1];
  T square = 0;
  for (int lane = 0; lane < S::kLanes; ++lane) square += squares[0][lane];
  for (; i < n; ++i) square += x[i] * x[i];
  return T(1) / std::max(std::sqrt(square), T(kMinNorm));
}

template <typename T>
void inverse_norms(const T* const* rows, int64_t count, int64_t width, T* to) {
  for (int64_t j = 0; j < count; ++j) to[j] = inverse_norm_of(rows[j], width);
}

// to (rows, C) = factor * unit(query). Padding rows are zeros.
template <typename T>
void unit_queries(const Group<T>& group, int64_t first, int64_t rows, T factor, T* to) {
  const int64_t channels = group.channels;
  for (int64_t r = 0; r < rows; ++r, to += channels) {
    if (first + r >= group.queries) {
      std::fill(to, to + channels, T(0));
      continue;
    }
    const T* from = group.query + group.query_index[first + r] * channels;
    const T scale = factor * inverse_norm_of(from, channels);
    for (int64_t c = 0; c < channels; ++c) to[c] = from[c] * scale;
  }
}

// The gradient of x, from the gradient of unit(x). It is added to `to` if Add is true, else written to it.
template <typename T, bool Add>
void unit_gradient(const T* x, T inverse_norm, const T* grad, int64_t n, T* to) {
  T projection = 0;
  if (inverse_norm < T(1 / kMinNorm)) {
#pragma omp simd reduction(+ : projection)
    for (int64_t i = 0; i < n; ++i) projection += x[i] * grad[i];
    projection *= inverse_norm * inverse_norm;
  }
  for (int64_t i = 0; i < n; ++i) {
    const T gradient = (grad[i] - x[i] * projection) * inverse_norm;
    to[i] = Add ? to[i] + gradient : gradient;
  }
}

// Number of rows of a tile: kTileRows, or fewer in the last tile, padded to whole vectors.
template <typename T>
int64_t rows_of_tile(const Group<T>& group, int64_t tile) {
  constexpr int64_t lanes = std::max<int64_t>(Simd<T>::kLanes, kRows);
  const int64_t rows = std::min(kTileRows, group.queries - tile * kTileRows);
  return round_up(rows, lanes);
}

// correlation (count, rows): the dot products of `count` keys with the columns of `queries`.
template <typename T>
void correlate(const Panels<T>& queries, const T* const* keys, int64_t count, T* correlation) {
  queries.template times<false>([&](int64_t j) { return keys[j]; }, 1, count, correlation, queries.columns);
}

// correlation = 2 ** (correlation * inverse_norm[key] - row_max[row]), and 0 for keys past `count`. `sum`, unless null,
// gets the sums over the keys added.
template <typename T>
void exponentiate(T* correlation, const T* inverse_norm, const T* row_max, int64_t count, int64_t padded, int64_t rows,
                  T* sum) {
  using S = Simd<T>;
  for (int64_t r = 0; r < rows; r += S::kLanes) {
    const auto maxima = S::load(row_max + r);
    typename S::Vector total{};
    T* at = correlation + r;
    for (int64_t j = 0; j < count; ++j, at += rows) {
      const auto power = S::exp2(S::load(at) * inverse_norm[j] - maxima);
      S::store(at, power);
      total += power;
    }
    for (int64_t j = count; j < padded; ++j, at += rows) S::store(at, typename S::Vector{});
    if (sum != nullptr) S::store(sum + r, S::load(sum + r) + total);
  }
}

// An upper bound of each row's scores, which is subtracted before the exponentials. Scores are at most the temperature,
// so the temperature is the bound. At a high temperature all exponentials of a row could underflow, so then the bound
// is the maximum of the row.
template <typename T>
void find_row_max(const Group<T>& group, const Panels<T>& queries, const T* inverse_norm, T* row_max, T* correlation) {
  const int64_t rows = queries.columns;
  std::fill(row_max, row_max + rows, group.temperature * T(kLog2E));
  if (group.temperature <= (sizeof(T) == 4 ? 40 : 300)) return;
  std::fill(row_max, row_max + rows, -std::numeric_limits<T>::infinity());
  for (int64_t chunk = 0; chunk < group.keys; chunk += kChunk) {
    const int64_t count = std::min(kChunk, group.keys - chunk), padded = round_up(count, kRows);
    correlate(queries, group.key_rows + chunk, padded, correlation);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t r = 0; r < rows; ++r) {
        row_max[r] = std::max(row_max[r], correlation[j * rows + r] * inverse_norm[chunk + j]);
      }
    }
  }
}

// out and lse (log-sum-exp, base 2) of the queries of one tile.
template <typename T>
void forward_tile(const Group<T>& group, int64_t tile, const T* inverse_norm, T* scratch) {
  using S = Simd<T>;
  const int64_t rows = rows_of_tile(group, tile), first = tile * kTileRows;
  const int64_t real = std::min(rows, group.queries - first), width = group.values;
  const int64_t value_columns = round_up(width, S::kLanes);
  T* query = scratch;                                    // (rows, channels)
  T* panels = query + kTileRows * group.channels;        // the same, transposed, in panels
  T* correlation = panels + kTileRows * group.channels;  // (keys of a chunk, rows)
  T* value_panels = correlation + kChunk * kTileRows;    // (keys of a chunk, value_columns)
  T* acc = value_panels + kChunk * (width + S::kLanes);  // (rows, value_columns)
  T* row_max = acc + kTileRows * (width + S::kLanes);
  T* row_sum = row_max + kTileRows;

  unit_queries(group, first, rows, group.temperature * T(kLog2E), query);
  pack_columns([&](int64_t r) { return query + r * group.channels; }, group.channels, rows, panels);
  const Panels<T> queries{panels, group.channels, rows};
  std::fill(row_sum, row_sum + rows, T(0));
  std::fill(acc, acc + rows * value_columns, T(0));
  find_row_max(group, queries, inverse_norm, row_max, correlation);
  for (int64_t chunk = 0; chunk < group.keys; chunk += kChunk) {
    const int64_t count = std::min(kChunk, group.keys - chunk), padded = round_up(count, kRows);
    correlate(queries, group.key_rows + chunk, padded, correlation);
    exponentiate(correlation, inverse_norm + chunk, row_max, count, padded, rows, row_sum);
    const T* const* value = group.value_rows + chunk;
    const auto weight = [&](int64_t r) { return correlation + r; };
    if (rows <= 2 * kRows && width == value_columns) {
      // With this few rows, packing the values costs more than it saves.
      const auto in_place = [&](int64_t column, int64_t) { return [=](int64_t k) { return value[k] + column; }; };
      product<T, true>(weight, rows, rows, in_place, count, width, acc, value_columns);
    } else {
      pack_rows([&](int64_t j) { return value[j]; }, count, width, value_columns, value_panels);
      const Panels<T> values{value_panels, count, value_columns};
      values.template times<true>(weight, rows, rows, acc, value_columns);
    }
  }
  for (int64_t r = 0; r < real; ++r) {
    T* out = group.out + group.query_index[first + r] * width;
    const T scale = T(1) / row_sum[r];
    for (int64_t c = 0; c < width; ++c) out[c] = acc[r * value_columns + c] * scale;
    group.lse[group.query_index[first + r]] = row_max[r] + binary_logarithm(row_sum[r]);
  }
}

// Pack what the backward needs of a tile of queries, once for all chunks of keys.
template <typename T>
void prepare_tile(const Group<T>& group, int64_t tile, const Tile<T>& to, T* scratch) {
  using S = Simd<T>;
  const int64_t rows = rows_of_tile(group, tile), first = tile * kTileRows;
  const int64_t real = std::min(rows, group.queries - first), channels = group.channels, width = group.values;
  T* query = scratch;                      // (rows, channels)
  T* grad = query + kTileRows * channels;  // (rows, values)
  unit_queries(group, first, rows, group.temperature, query);
  std::fill(grad, grad + rows * width, T(0));
  for (int64_t r = 0; r < rows; ++r) {
    T delta = 0;
    if (r < real) {
      const int64_t at = group.query_index[first + r];
      std::copy(group.grad + at * width, group.grad + (at + 1) * width, grad + r * width);
      for (int64_t c = 0; c < width; ++c) delta += grad[r * width + c] * group.out[at * width + c];
    }
    to.delta[r] = delta;
    // Gradients and queries of padding rows are 0, so they add nothing. A huge lse keeps their weights finite.
    to.lse[r] = r < real ? group.lse[group.query_index[first + r]] : std::numeric_limits<T>::max();
  }
  const auto query_row = [&](int64_t r) { return query + r * channels; };
  const auto grad_row = [&](int64_t r) { return grad + r * width; };
  pack_columns(query_row, channels, rows, to.query_columns);
  pack_columns(grad_row, width, rows, to.grad_columns);
  pack_rows(query_row, rows, channels, round_up(channels, S::kLanes), to.query_rows);
  pack_rows(grad_row, rows, width, round_up(width, S::kLanes), to.grad_rows);
}

// The gradients of one chunk of keys and values. Adds the chunk's contribution to the queries' gradients to grad_query.
template <typename T>
void backward_chunk(const Group<T>& group, int64_t chunk, const Tile<T>* tiles, int64_t tile_count, T* grad_query,
                    T* scratch) {
  using S = Simd<T>;
  const int64_t count = std::min(kChunk, group.keys - chunk), keys = round_up(count, kRows);
  const int64_t channels = group.channels, key_columns = round_up(channels, S::kLanes),
                value_columns = round_up(group.values, S::kLanes);
  T* correlation = scratch;                        // (keys, rows)
  T* gradient = correlation + kChunk * kTileRows;  // of it
  T* key_panels = gradient + kChunk * kTileRows;   // (count, key_columns)
  T* grad_key = key_panels + kChunk * (channels + S::kLanes);
  T* grad_value = grad_key + kChunk * (channels + S::kLanes);
  T* inverse_norm = grad_value + kChunk * (group.values + S::kLanes);
  std::fill(grad_key, grad_key + keys * key_columns, T(0));
  std::fill(grad_value, grad_value + keys * value_columns, T(0));
  const T* const* key = group.key_rows + chunk;
  inverse_norms(key, count, channels, inverse_norm);
  pack_rows([&](int64_t j) { return key[j]; }, count, channels, key_columns, key_panels);

  for (int64_t t = 0; t < tile_count; ++t) {
    const Tile<T>& tile = tiles[t];
    const int64_t rows = rows_of_tile(group, t);
    const Panels<T> query_columns{tile.query_columns, channels, rows},
        grad_columns{tile.grad_columns, group.values, rows};
    correlate(query_columns, key, keys, correlation);
    correlate(grad_columns, group.value_rows + chunk, keys, gradient);
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t r = 0; r < rows; r += S::kLanes) {
        T *at = correlation + j * rows + r, *grad = gradient + j * rows + r;
        if (j >= count) {
          S::store(at, typename S::Vector{});
          S::store(grad, typename S::Vector{});
          continue;
        }
        const auto power = S::exp2(S::load(at) * (inverse_norm[j] * T(kLog2E)) - S::load(tile.lse + r));
        S::store(at, power);
        S::store(grad, power * (S::load(grad) - S::load(tile.delta + r)));
      }
    }
    const Panels<T> grad_rows{tile.grad_rows, rows, value_columns}, query_rows{tile.query_rows, rows, key_columns};
    grad_rows.template times<true>([&](int64_t j) { return correlation + j * rows; }, 1, keys, grad_value,
                                   value_columns);
    query_rows.template times<true>([&](int64_t j) { return gradient + j * rows; }, 1, keys, grad_key, key_columns);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t r = 0; r < rows; ++r) gradient[j * rows + r] *= inverse_norm[j];
    }
    const Panels<T> keys_by_row{key_panels, count, key_columns};
    keys_by_row.template times<true>([&](int64_t r) { return gradient + r; }, rows, rows,
                                     grad_query + t * kTileRows * key_columns, key_columns);
  }
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = group.key_index[chunk + j];
    const T *of_key = grad_key + j * key_columns, *of_value = grad_value + j * value_columns;
    if (group.tied) {
      std::copy(of_value, of_value + channels, group.grad_key + at * channels);
      unit_gradient<T, true>(key[j], inverse_norm[j], of_key, channels, group.grad_key + at * channels);
    } else {
      std::copy(of_value, of_value + group.values, group.grad_value + at * group.values);
      unit_gradient<T, false>(key[j], inverse_norm[j], of_key, channels, group.grad_key + at * channels);
    }
  }
}

// The gradients of the queries of one tile: sums the partial gradients of the unit queries (row stride `columns`) and
// applies the gradient of the normalisation. *temperature gets the tile's part of the gradient of the temperature.
template <typename T>
void query_gradients(const Group<T>& group, int64_t tile, const std::vector<const T*>& partials, int64_t columns,
                     T* sum, double* temperature) {
  const int64_t channels = group.channels;
  double total = 0;
  for (int64_t r = tile * kTileRows; r < std::min(group.queries, (tile + 1) * kTileRows); ++r) {
    std::fill(sum, sum + channels, T(0));
    for (const T* partial : partials) {
      for (int64_t c = 0; c < channels; ++c) sum[c] += partial[r * columns + c];
    }
    const int64_t at = group.query_index[r] * channels;
    const T* x = group.query + at;
    const T inverse_norm = inverse_norm_of(x, channels);
    T projection = 0;
#pragma omp simd reduction(+ : projection)
    for (int64_t c = 0; c < channels; ++c) projection += x[c] * sum[c];
    for (int64_t c = 0; c < channels; ++c) sum[c] *= group.temperature;
    total += projection * inverse_norm;
    unit_gradient<T, false>(x, inverse_norm, sum, channels, group.grad_query + at);
  }
  *temperature = total;
}

// rho[j] = the sum of the weights of key j over the group's queries. total[j] = the weighted sum of the queries, or
// blended[j] = the key, moved towards their weighted mean.
template <typename T>
void accumulate_group(const Group<T>& group, T* scratch) {
  using S = Simd<T>;
  const int64_t channels = group.channels, keys = round_up(group.keys, kRows);
  const int64_t columns = round_up(channels + 1, S::kLanes);  // the queries, and a column of ones that sums the weights
  T* weights = scratch;                                       // (keys, rows)
  T* rows_of_queries = weights + keys * kTileRows;            // (rows, columns)
  T* panels = rows_of_queries + kTileRows * columns;
  T* row_max = panels + kTileRows * columns;
  T* sum = row_max + kTileRows;
  T* total = sum + kTileRows;  // (keys, columns)
  T* inverse_norm = total + keys * columns;
  if (group.queries == 0) {
    std::fill(total, total + keys * columns, T(0));
  } else {
    inverse_norms(group.key_rows, group.keys, channels, inverse_norm);
  }
  for (int64_t first = 0; first < group.queries; first += kTileRows) {
    const int64_t rows = rows_of_tile(group, first / kTileRows), real = std::min(rows, group.queries - first);
    unit_queries(group, first, rows, group.temperature * T(kLog2E), rows_of_queries);
    pack_columns([&](int64_t r) { return rows_of_queries + r * channels; }, channels, rows, panels);
    const Panels<T> queries{panels, channels, rows};
    find_row_max(group, queries, inverse_norm, row_max, weights);
    std::fill(sum, sum + rows, T(0));
    correlate(queries, group.key_rows, keys, weights);
    exponentiate(weights, inverse_norm, row_max, group.keys, keys, rows, sum);
    for (int64_t r = 0; r < rows; ++r) {
      T* row = rows_of_queries + r * columns;
      std::fill(row, row + columns, T(0));
      if (r >= real) continue;
      const T* query = group.query + group.query_index[first + r] * channels;
      const T scale = T(1) / sum[r];
      for (int64_t c = 0; c < channels; ++c) row[c] = query[c] * scale;
      row[channels] = scale;
    }
    pack_rows([&](int64_t r) { return rows_of_queries + r * columns; }, rows, columns, columns, panels);
    const Panels<T> by_row{panels, rows, columns};
    const auto weight = [&](int64_t j) { return weights + j * rows; };
    if (first == 0) {
      by_row.template times<false>(weight, 1, keys, total, columns);
    } else {
      by_row.template times<true>(weight, 1, keys, total, columns);
    }
  }
  for (int64_t j = 0; j < group.keys; ++j) {
    const T* row = total + j * columns;
    group.rho[j] = row[channels];
    if (group.blended != nullptr) {
      blend(group.key_rows[j], row[channels], row, group.log_keep, channels, group.blended + j * channels);
    } else {
      std::copy(row, row + channels, group.total + j * channels);
    }
  }
}
