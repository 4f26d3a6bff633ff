// Cosine attention in bfloat16 for one tile of a group's queries. Like bf16_tiles.h, this file is included once.
//
// Products take the bfloat16 numbers as they are, and sum in float32. Norms and the temperature are applied to the
// sums, so nothing but the weights (and their gradients) is rounded to bfloat16 on the way.

using Bf16Group = Group<BFloat16, float>;

// Queries per tile, and keys per chunk. In the backward every product sums over 128 rows or keys, so that reading and
// writing the sums takes no longer than the products.
constexpr int64_t kRows = 128, kForwardKeys = 256, kBackwardKeys = 128;

inline const Bits* bits(const BFloat16* at) { return reinterpret_cast<const Bits*>(at); }
inline Bits* bits(BFloat16* at) { return reinterpret_cast<Bits*>(at); }

// Hands out aligned parts of a buffer.
class Arena {
 public:
  explicit Arena(void* at) : at_(static_cast<char*>(at)) {}
  template <typename T>
  T* take(int64_t size) {
    return reinterpret_cast<T*>(std::exchange(at_, at_ + round_up(size * sizeof(T), 64)));
  }

 private:
  char* at_;
};

// 2 ** x. Huge negative numbers give 0.
inline __m512 exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 fraction = x - whole;  // in -1/2 .. 1/2
  __m512 power = _mm512_set1_ps(1.3333558e-3f);
  for (float coefficient : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(coefficient));
  }
  return _mm512_scalef_ps(power, whole);
}

inline float inverse_norm_of(const BFloat16* x, int64_t n) {
  __m512 squares = {};
  for (int64_t c = 0; c < n; c += kLanes) {
    const __m512 here = load(bits(x) + c, n - c);
    squares = _mm512_fmadd_ps(here, here, squares);
  }
  return 1 / std::max(std::sqrt(_mm512_reduce_add_ps(squares)), static_cast<float>(kMinNorm));
}

// The gradient of x, from the gradient of unit(x).
inline void unit_gradient(const BFloat16* x, float inverse_norm, const float* grad, int64_t n, BFloat16* to) {
  __m512 sum = {};
  if (inverse_norm < static_cast<float>(1 / kMinNorm)) {
    for (int64_t c = 0; c < n; c += kLanes) {  // x is 0 past its end
      sum = _mm512_fmadd_ps(load(bits(x) + c, n - c), _mm512_loadu_ps(grad + c), sum);
    }
  }
  const __m512 projection = _mm512_set1_ps(_mm512_reduce_add_ps(sum) * inverse_norm * inverse_norm);
  for (int64_t c = 0; c < n; c += kLanes) {
    const __m512 rest = _mm512_fnmadd_ps(load(bits(x) + c, n - c), projection, _mm512_loadu_ps(grad + c));
    store(bits(to) + c, rest * _mm512_set1_ps(inverse_norm), n - c);
  }
}

// Rows first .. first + most - 1 of the queries, or of another tensor with the same rows.
inline auto rows_of(const Bf16Group& group, const BFloat16* data, int64_t width, int64_t first, int64_t most) {
  const auto row = [=, &group](int64_t r) { return bits(data + group.query_index[first + r] * width); };
  return Rows<decltype(row)>{row, std::min(most, group.queries - first), width};
}

inline auto rows_of(const BFloat16* const* rows, int64_t count, int64_t width) {
  const auto row = [=](int64_t j) { return bits(rows[j]); };
  return Rows<decltype(row)>{row, count, width};
}

// The keys and values of a group, packed once for all tiles of the forward.
struct KeysAndValues {
  Bits *keys, *values;   // of each chunk: the transposed keys, the values; both as B
  float* inverse_norms;  // of the keys; 0 for the padding
};

void pack_chunk(const Bf16Group& group, int64_t first_key, const KeysAndValues& to) {
  const int64_t count = std::min(kForwardKeys, group.keys - first_key);
  rows_of(group.key_rows + first_key, count, group.channels)
      .pack_b_transposed(to.keys + first_key * padded(group.channels));
  rows_of(group.value_rows + first_key, count, group.values).pack_b(to.values + first_key * padded(group.values));
  for (int64_t j = 0; j < padded(count); ++j) {
    to.inverse_norms[first_key + j] = j < count ? inverse_norm_of(group.key_rows[first_key + j], group.channels) : 0;
  }
}

// Scratch memory of forward_tile, in floats.
int64_t forward_scratch(const Bf16Group& group) {
  return kRows * (padded(group.channels) / 2 + 3 + kForwardKeys * 3 / 2 + padded(group.values));
}

// out and lse (log-sum-exp, base 2) of the queries of one tile.
template <typename Isa>
void forward_tile(const Bf16Group& group, int64_t tile, const KeysAndValues& packed, float* scratch) {
  const int64_t depth = padded(group.channels), columns = padded(group.values), first_row = tile * kRows;
  const auto queries = rows_of(group, group.query, group.channels, first_row, kRows);
  const int64_t rows = padded(queries.count);
  Arena arena(scratch);
  Bits* query = arena.take<Bits>(rows * depth);
  float* scale = arena.take<float>(rows);  // of the query: temperature * inverse norm, in base 2
  float* row_max = arena.take<float>(rows);
  float* row_sum = arena.take<float>(rows);
  float* scores = arena.take<float>(rows * kForwardKeys);
  Bits* weights = arena.take<Bits>(rows * kForwardKeys);
  float* acc = arena.take<float>(rows * columns);

  queries.pack_a(query);
  for (int64_t r = 0; r < rows; ++r) {
    const BFloat16* x = r < queries.count ? group.query + group.query_index[first_row + r] * group.channels : nullptr;
    scale[r] = x ? group.temperature * static_cast<float>(kLog2E) * inverse_norm_of(x, group.channels) : 0;
    row_sum[r] = 0;
  }
  for (int64_t first_key = 0; first_key < group.keys; first_key += kForwardKeys) {
    const int64_t count = std::min(kForwardKeys, group.keys - first_key);
    Isa::template product<false>(query, depth, rows, packed.keys + first_key * depth, depth, padded(count), scores,
                                 kForwardKeys);
    for (int64_t r = 0; r < rows; ++r) {
      float* score = scores + r * kForwardKeys;
      __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
      for (int64_t j = 0; j < count; j += kLanes) {
        const __m512 norms = _mm512_loadu_ps(packed.inverse_norms + first_key + j);
        const __m512 scaled = _mm512_loadu_ps(score + j) * norms * _mm512_set1_ps(scale[r]);
        most = _mm512_mask_max_ps(most, first_lanes(count - j), most, scaled);
        _mm512_storeu_ps(score + j, scaled);
      }
      // A row keeps the maximum of its first chunk, until one is larger by so much that the weights might overflow.
      const float row_most = _mm512_reduce_max_ps(most);
      if (first_key == 0) {
        row_max[r] = row_most;
      } else if (row_most > row_max[r] + 16) {
        const __m512 factor = exp2(_mm512_set1_ps(row_max[r] - row_most));
        row_sum[r] *= _mm512_cvtss_f32(factor);
        for (int64_t c = 0; c < columns; c += kLanes) {
          float* at = acc + r * columns + c;
          _mm512_storeu_ps(at, _mm512_loadu_ps(at) * factor);
        }
        row_max[r] = row_most;
      }
      // The weights are rounded before they are summed, so that they sum to 1 as the product sees them.
      __m512 sum = {};
      for (int64_t j = 0; j < padded(count); j += kLanes) {
        const __m512 power = exp2(_mm512_loadu_ps(score + j) - _mm512_set1_ps(row_max[r]));
        const __m256i weight = rounded(_mm512_maskz_mov_ps(first_lanes(count - j), power));
        sum += widened(weight);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + r * kForwardKeys + j), weight);
      }
      row_sum[r] += _mm512_reduce_add_ps(sum);
    }
    const auto multiply = first_key == 0 ? Isa::template product<false> : Isa::template product<true>;
    multiply(weights, kForwardKeys, rows, packed.values + first_key * columns, padded(count), columns, acc, columns);
  }
  for (int64_t r = 0; r < queries.count; ++r) {
    const int64_t at = group.query_index[first_row + r];
    const __m512 factor = _mm512_set1_ps(1 / row_sum[r]);
    for (int64_t c = 0; c < group.values; c += kLanes) {
      const __m512 mean = _mm512_loadu_ps(acc + r * columns + c) * factor;
      store(bits(group.out + at * group.values) + c, mean, group.values - c);
    }
    group.lse[at] = row_max[r] + std::log2(row_sum[r]);
  }
}

// A tile of queries, packed for the backward.
struct Tile {
  Bits *query_columns, *query_rows;  // as B: the transposed queries, the queries
  Bits *grad_columns, *grad_rows;    // the gradient of the outputs, in the same two layouts
  float *scale, *lse, *delta;        // temperature * inverse norm; lse; <grad, out>

  static int64_t bytes(const Bf16Group& group) {
    return kRows * (4 * (padded(group.channels) + padded(group.values)) + 12);
  }
};

void prepare_tile(const Bf16Group& group, int64_t tile, Tile* to, char* memory) {
  const int64_t first_row = tile * kRows, channels = group.channels, values = group.values;
  const auto queries = rows_of(group, group.query, channels, first_row, kRows);
  const auto grads = rows_of(group, group.grad, values, first_row, kRows);
  Arena arena(memory);
  for (Bits** each : {&to->query_columns, &to->query_rows}) *each = arena.take<Bits>(kRows * padded(channels));
  for (Bits** each : {&to->grad_columns, &to->grad_rows}) *each = arena.take<Bits>(kRows * padded(values));
  for (float** each : {&to->scale, &to->lse, &to->delta}) *each = arena.take<float>(kRows);
  queries.pack_b_transposed(to->query_columns);
  queries.pack_b(to->query_rows);
  grads.pack_b_transposed(to->grad_columns);
  grads.pack_b(to->grad_rows);
  for (int64_t r = 0; r < padded(queries.count); ++r) {
    if (r >= queries.count) {  // a huge lse makes the weights of the padding 0
      to->scale[r] = to->delta[r] = 0;
      to->lse[r] = std::numeric_limits<float>::max();
      continue;
    }
    const int64_t at = group.query_index[first_row + r];
    __m512 delta = {};
    for (int64_t c = 0; c < values; c += kLanes) {
      delta = _mm512_fmadd_ps(load(grads.row(r) + c, values - c), load(bits(group.out + at * values) + c, values - c),
                              delta);
    }
    to->scale[r] = group.temperature * inverse_norm_of(group.query + at * channels, channels);
    to->lse[r] = group.lse[at];
    to->delta[r] = _mm512_reduce_add_ps(delta);
  }
}

// Scratch memory of backward_chunk, in floats.
int64_t backward_scratch(const Bf16Group& group) {
  return kBackwardKeys * (2 * padded(group.channels) + padded(group.values) * 3 / 2 + 1 + kRows * 7 / 2);
}

// The gradients of one chunk of keys and values. Adds the chunk's part of the gradients of the unit queries,
// transposed: (channels, kRows) for each tile.
template <typename Isa>
void backward_chunk(const Bf16Group& group, int64_t first_key, const Tile* tiles, int64_t tile_count, float* grad_query,
                    float* scratch) {
  const int64_t count = std::min(kBackwardKeys, group.keys - first_key), keys = padded(count);
  const int64_t channels = padded(group.channels), values = padded(group.values);
  Arena arena(scratch);
  Bits* key = arena.take<Bits>(keys * channels);
  Bits* key_transposed = arena.take<Bits>(channels * keys);
  Bits* value = arena.take<Bits>(keys * values);
  float* norm = arena.take<float>(keys);            // inverse norms
  float* scores = arena.take<float>(keys * kRows);  // (keys, rows)
  float* grad_weight = arena.take<float>(keys * kRows);
  Bits* weight = arena.take<Bits>(keys * kRows);       // as A
  Bits* grad_score = arena.take<Bits>(keys * kRows);   // as A, times the scale of the query
  Bits* grad_cosine = arena.take<Bits>(keys * kRows);  // as B, times the inverse norm of the key
  float* grad_key = arena.take<float>(keys * channels);
  float* grad_value = arena.take<float>(keys * values);

  const auto key_rows = rows_of(group.key_rows + first_key, count, group.channels);
  key_rows.pack_a(key);
  key_rows.pack_a_transposed(key_transposed);
  rows_of(group.value_rows + first_key, count, group.values).pack_a(value);
  for (int64_t j = 0; j < keys; ++j)
    norm[j] = j < count ? inverse_norm_of(group.key_rows[first_key + j], group.channels) : 0;
  std::fill(grad_key, grad_key + keys * channels, 0.0f);
  std::fill(grad_value, grad_value + keys * values, 0.0f);

  for (int64_t t = 0; t < tile_count; ++t) {
    const Tile& tile = tiles[t];
    const int64_t rows = padded(std::min(kRows, group.queries - t * kRows));
    Isa::template product<false>(key, channels, keys, tile.query_columns, channels, rows, scores, rows);
    Isa::template product<false>(value, values, keys, tile.grad_columns, values, rows, grad_weight, rows);
    for (int64_t j = 0; j < keys; j += 2) {
      for (int64_t r = 0; r < rows; r += kLanes) {
        __m512 gradient[2];
        for (int i = 0; i < 2; ++i) {
          const int64_t at = (j + i) * rows + r;
          const __m512 of_query = _mm512_loadu_ps(tile.scale + r), of_key = _mm512_set1_ps(norm[j + i]);
          const __m512 score = _mm512_loadu_ps(scores + at) * of_query * of_key;
          const __m512 log2e = _mm512_set1_ps(static_cast<float>(kLog2E));
          const __m512 power = exp2(_mm512_fmsub_ps(score, log2e, _mm512_loadu_ps(tile.lse + r)));
          const __m512 p = _mm512_maskz_mov_ps(j + i < count ? 0xffff : 0, power);  // 0 for the padding
          gradient[i] = p * (_mm512_loadu_ps(grad_weight + at) - _mm512_loadu_ps(tile.delta + r));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(weight + at), rounded(p));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(grad_score + at), rounded(gradient[i] * of_query));
        }
        const __m512 low = gradient[0] * _mm512_set1_ps(norm[j]), high = gradient[1] * _mm512_set1_ps(norm[j + 1]);
        _mm512_storeu_si512(grad_cosine + r * keys + j * kLanes, paired(low, high));
      }
    }
    Isa::template product<true>(weight, rows, keys, tile.grad_rows, rows, values, grad_value, values);
    Isa::template product<true>(grad_score, rows, keys, tile.query_rows, rows, channels, grad_key, channels);
    Isa::template product<true>(key_transposed, keys, channels, grad_cosine, keys, rows,
                                grad_query + t * kRows * channels, kRows);
  }
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = group.key_index[first_key + j];
    unit_gradient(group.key_rows[first_key + j], norm[j], grad_key + j * channels, group.channels,
                  group.grad_key + at * group.channels);
    for (int64_t c = 0; c < group.values; c += kLanes) {
      store(bits(group.grad_value + at * group.values) + c, _mm512_loadu_ps(grad_value + j * values + c),
            group.values - c);
    }
  }
}

// The gradients of the queries of one tile: sums the partial gradients of the unit queries and applies the gradient of
// the normalisation. Returns the tile's part of the gradient of the temperature.
double query_gradients(const Bf16Group& group, int64_t tile, const std::vector<const float*>& partials,
                       float* scratch) {
  const int64_t first_row = tile * kRows, channels = padded(group.channels);
  const int64_t last = std::min(group.queries, first_row + kRows);
  double total = 0;
  for (int64_t begin = first_row; begin < last; begin += kLanes) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      __m512i x[16];
      for (int i = 0; i < 16; ++i) {
        __m512 sum = {};
        for (const float* partial : partials) {
          sum += _mm512_loadu_ps(partial + (first_row * channels + (c + i) * kRows) + begin - first_row);
        }
        x[i] = _mm512_castps_si512(sum);
      }
      transpose(x);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(scratch + i * channels + c, x[i]);
    }
    for (int64_t r = begin; r < std::min(last, begin + kLanes); ++r) {
      const int64_t at = group.query_index[r] * group.channels;
      const BFloat16* x = group.query + at;
      float* grad = scratch + (r - begin) * channels;
      const float norm = inverse_norm_of(x, group.channels);
      __m512 projection = {};
      for (int64_t c = 0; c < channels; c += kLanes) {
        const __m512 here = _mm512_loadu_ps(grad + c);
        projection = _mm512_fmadd_ps(load(bits(x) + c, group.channels - c), here, projection);
        _mm512_storeu_ps(grad + c, here * _mm512_set1_ps(group.temperature));
      }
      total += _mm512_reduce_add_ps(projection) * norm;
      unit_gradient(x, norm, grad, group.channels, group.grad_query + at);
    }
  }
  return total;
}
