// Products of small bfloat16 matrices with float32 sums, and the layouts that they need.
//
// No include guard: attention_bf16.cpp includes this file once, inside a namespace and with AVX512-BF16 enabled.
//
// A product takes A (rows, depth) row by row, and B (depth, columns) as words: word (i, n) holds B[2 * i][n] in its
// lower half and B[2 * i + 1][n] in its upper half. B is divided into panels of 16 columns, each stored row by row. AMX
// and AVX512-BF16 read the same layouts. Rows, depth and columns are multiples of kBlock; the padding is 0.

typedef uint16_t Bits;  // of a bfloat16

constexpr int64_t kLanes = 16;  // 32-bit lanes of a vector, and columns of a panel
constexpr int64_t kBlock = 32;

inline int64_t padded(int64_t n) { return round_up(n, kBlock); }

// Lanes 0 .. n - 1, for any n.
inline __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
inline __mmask32 first_halves(int64_t n) { return n >= 32 ? 0xffffffff : n <= 0 ? 0 : (1u << n) - 1; }

inline __m512 widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
// 16 elements from `at` on as float32; those from n on are 0.
inline __m512 load(const Bits* at, int64_t n) { return widened(_mm256_maskz_loadu_epi16(first_lanes(n), at)); }
inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
// Stores the first n of 16 elements.
inline void store(Bits* at, __m512 x, int64_t n) { _mm256_mask_storeu_epi16(at, first_lanes(n), rounded(x)); }
// (low, high) of each lane as words.
inline __m512i paired(__m512 low, __m512 high) {
  const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(high)), 16);
  return _mm512_or_si512(upper, _mm512_cvtepu16_epi32(rounded(low)));
}

// Transpose 16 x 16 words.
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + 2 + half]);
      x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + 2 + half]);
    }
  }
  // Now x[4 * g + i] holds, in each quarter q, the words 4 * q + i of the rows 4 * g .. 4 * g + 3.
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x44), b = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xee);
    y[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    y[4 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
    y[8 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
    y[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

// `count` rows of `width` elements, somewhere in memory; row(i) is the address of row i.
template <typename Row>
struct Rows {
  Row row;
  int64_t count, width;

  // 32 elements of row i from column c on, with zeros outside.
  __m512i words(int64_t i, int64_t c) const {
    return i < count ? _mm512_maskz_loadu_epi16(first_halves(width - c), row(i) + c) : __m512i{};
  }
  // The words (rows 2 * i and 2 * i + 1) of 16 columns from c on.
  __m512i pairs(int64_t i, int64_t c) const {
    const auto half = [&](int64_t r) {
      return r < count ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(width - c), row(r) + c))
                       : __m512i{};
    };
    return _mm512_or_si512(half(2 * i), _mm512_slli_epi32(half(2 * i + 1), 16));
  }

  // As A: (count, width).
  void pack_a(Bits* to) const {
    for (int64_t i = 0; i < padded(count); ++i) {
      for (int64_t c = 0; c < width; c += kBlock, to += kBlock) _mm512_storeu_si512(to, words(i, c));
    }
  }
  // As A, transposed: (width, count).
  void pack_a_transposed(Bits* to) const {
    const int64_t stride = padded(count);
    for (int64_t i = 0; i < stride; i += kBlock) {
      for (int64_t c = 0; c < padded(width); c += kLanes) {
        __m512i x[16];
        for (int j = 0; j < 16; ++j) x[j] = pairs(i / 2 + j, c);
        transpose(x);
        for (int j = 0; j < 16; ++j) _mm512_storeu_si512(to + (c + j) * stride + i, x[j]);
      }
    }
  }
  // As B: (count, width).
  void pack_b(Bits* to) const {
    for (int64_t c = 0; c < padded(width); c += kLanes) {
      for (int64_t i = 0; i < padded(count) / 2; ++i, to += 2 * kLanes) _mm512_storeu_si512(to, pairs(i, c));
    }
  }
  // As B, transposed: (width, count).
  void pack_b_transposed(Bits* to) const {
    for (int64_t i = 0; i < padded(count); i += kLanes) {
      for (int64_t c = 0; c < width; c += kBlock) {
        __m512i x[16];
        for (int j = 0; j < 16; ++j) x[j] = words(i + j, c);
        transpose(x);
        for (int j = 0; j < 16; ++j, to += 2 * kLanes) _mm512_storeu_si512(to, x[j]);
      }
    }
  }
};

// c (rows, columns) = a * b, added to c if Add is true. The rows of a and c have these strides.
struct Avx512Bf16 {
  static void start() {}
  static void finish() {}

  template <bool Add>
  static void product(const Bits* a, int64_t a_stride, int64_t rows, const Bits* b, int64_t depth, int64_t columns,
                      float* c, int64_t c_stride) {
    constexpr int64_t height = 8;  // with two vectors a row, this hides the latency of the products
    for (int64_t column = 0; column < columns; column += 2 * kLanes) {
      const Bits *left = b + column * depth, *right = left + kLanes * depth;
      for (int64_t row = 0; row < rows; row += height) {
        float* to = c + row * c_stride + column;
        __m512 sum[height][2];
        for (int r = 0; r < height; ++r) {
          sum[r][0] = Add ? _mm512_loadu_ps(to + r * c_stride) : __m512{};
          sum[r][1] = Add ? _mm512_loadu_ps(to + r * c_stride + kLanes) : __m512{};
        }
        const Bits* from = a + row * a_stride;
        for (int64_t k = 0; k < depth; k += 2) {
          const auto x = (__m512bh)_mm512_loadu_si512(left + k * kLanes);
          const auto y = (__m512bh)_mm512_loadu_si512(right + k * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < height; ++r) {
            int32_t word;
            std::memcpy(&word, from + r * a_stride + k, 4);
            const auto both = (__m512bh)_mm512_set1_epi32(word);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], both, x);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], both, y);
          }
        }
        for (int r = 0; r < height; ++r) {
          _mm512_storeu_ps(to + r * c_stride, sum[r][0]);
          _mm512_storeu_ps(to + r * c_stride + kLanes, sum[r][1]);
        }
      }
    }
  }
};

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")
struct Amx {
  // All tiles have 16 rows of 64 bytes. The setting is the thread's, and is given back because saving used tiles makes
  // every switch of threads slower.
  static void start() {
    // Static, because GCC takes only the first 8 bytes for the instruction's input, and would not write the others.
    alignas(64) static constexpr struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } shape{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
  }
  static void finish() { _tile_release(); }

  template <bool Add>
  static void product(const Bits* a, int64_t a_stride, int64_t rows, const Bits* b, int64_t depth, int64_t columns,
                      float* c, int64_t c_stride) {
    for (int64_t column = 0; column < columns; column += 32) {
      const Bits *left = b + column * depth, *right = left + kLanes * depth;
      for (int64_t row = 0; row < rows; row += 32) {
        float *upper = c + row * c_stride + column, *lower = upper + 16 * c_stride;
        if constexpr (Add) {
          _tile_loadd(0, upper, 4 * c_stride);
          _tile_loadd(1, upper + 16, 4 * c_stride);
          _tile_loadd(2, lower, 4 * c_stride);
          _tile_loadd(3, lower + 16, 4 * c_stride);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        const Bits *first = a + row * a_stride, *second = first + 16 * a_stride;
        for (int64_t k = 0; k < depth; k += 32) {
          _tile_loadd(4, first + k, 2 * a_stride);
          _tile_loadd(6, left + k * kLanes, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, right + k * kLanes, 64);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, second + k, 2 * a_stride);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, upper, 4 * c_stride);
        _tile_stored(1, upper + 16, 4 * c_stride);
        _tile_stored(2, lower, 4 * c_stride);
        _tile_stored(3, lower + 16, 4 * c_stride);
      }
    }
  }
};
#pragma GCC pop_options
