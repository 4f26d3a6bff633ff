// Small matrix products and exponentials with the vectors of one instruction set.
//
// No include guard: attention.cpp includes this file once per instruction set, inside a namespace and with that target
// enabled. SHOWFACE_VECTOR_BYTES must be defined. The file includes no headers.

// Rows of a product kept in registers. 8 rows of 2 vectors hide the latency of the multiply-adds.
constexpr int kRows = 8;

template <typename T>
struct Simd {
  static constexpr int kLanes = SHOWFACE_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(SHOWFACE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Integer Integers __attribute__((vector_size(SHOWFACE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

  static Vector load(const T* at) { return *reinterpret_cast<const Vector*>(at); }
  static void store(T* at, Vector x) { *reinterpret_cast<Vector*>(at) = x; }

  // 2 ** x for x <= 0. Results are clamped to the smallest normal number.
  static Vector exp2(Vector x) {
    constexpr bool single = sizeof(T) == 4;
    constexpr T lowest = single ? -126 : -1022;
    // After adding this number, the lowest bits hold the nearest integer.
    constexpr T magic = single ? T(12582912) : T(6755399441055744);
    constexpr int mantissa = single ? 23 : 52;
    constexpr int degree = single ? 6 : 12;
    constexpr double log_2 = 0.693147180559945309417;
    const Vector bounded = x < lowest ? lowest - Vector{} : x;
    const Vector shifted = bounded + magic;
    const Vector fraction = bounded - (shifted - magic);  // in -1/2 .. 1/2
    double coefficient[degree + 1] = {1};
    for (int i = 1; i <= degree; ++i) coefficient[i] = coefficient[i - 1] * log_2 / i;
    Vector power = static_cast<T>(coefficient[degree]) - Vector{};
#pragma GCC unroll 12
    for (int i = degree - 1; i >= 0; --i) power = power * fraction + static_cast<T>(coefficient[i]);
    const Integers exponent = reinterpret_cast<const Integers&>(shifted) << mantissa;
    const Integers result = reinterpret_cast<const Integers&>(power) + exponent;
    // For a NaN the integers above may be any number.
    return x == x ? reinterpret_cast<const Vector&>(result) : x;
  }
};

// c (Rows, Vectors * lanes) = a (Rows, depth) * b (depth, Vectors * lanes), added to c if Add is true. Row r of a is
// a[r][0], a[r][step], a[r][2 * step], ... b(k) returns a pointer to row k of b.
template <typename T, int Rows, int Vectors, bool Add, typename B>
inline void product_block(const T* const* a, int64_t step, const B& b, int64_t depth, T* c, int64_t c_stride) {
  using S = Simd<T>;
  typename S::Vector sum[Rows][Vectors];
  const T* row[Rows];
  for (int r = 0; r < Rows; ++r) {
    row[r] = a[r];
    for (int v = 0; v < Vectors; ++v) sum[r][v] = typename S::Vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* from = b(k);
    typename S::Vector here[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) here[v] = S::load(from + v * S::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const T x = row[r][k * step];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += x * here[v];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      T* at = c + r * c_stride + v * S::kLanes;
      S::store(at, Add ? S::load(at) + sum[r][v] : sum[r][v]);
    }
  }
}

// c (rows, columns) = a (rows, depth) * b (depth, columns), added to c if Add is true. a(r) returns row r of a, and
// `rows` is a multiple of kRows. b(column, width) returns a function for the rows of b from that column on, and
// `columns` is a multiple of the lanes of a vector.
template <typename T, bool Add, typename A, typename B>
inline void product(const A& a, int64_t step, int64_t rows, const B& b, int64_t depth, int64_t columns, T* c,
                    int64_t c_stride) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  for (int64_t column = 0; column < columns; column += 2 * lanes) {
    const bool two = column + lanes < columns;
    const auto panel = b(column, two ? 2 * lanes : lanes);
    // With one vector per row, twice as many rows fit into the registers.
    const int64_t most = two ? kRows : 2 * kRows;
    for (int64_t r = 0; r < rows;) {
      const int64_t here = std::min(most, rows - r);
      const T* pointers[2 * kRows];
      for (int i = 0; i < here; ++i) pointers[i] = a(r + i);
      T* at = c + r * c_stride + column;
      if (two) {
        product_block<T, kRows, 2, Add>(pointers, step, panel, depth, at, c_stride);
      } else if (here == 2 * kRows) {
        product_block<T, 2 * kRows, 1, Add>(pointers, step, panel, depth, at, c_stride);
      } else {
        product_block<T, kRows, 1, Add>(pointers, step, panel, depth, at, c_stride);
      }
      r += here;
    }
  }
}

// A matrix divided into panels that are two vectors wide (the last may be one vector wide), each stored row by row.
// `columns` is a multiple of the lanes of a vector.
template <typename T>
struct Panels {
  const T* data;
  int64_t depth, columns;

  // c (rows, columns) = a * this, added to c if Add is true; see `product`.
  template <bool Add, typename A>
  void times(const A& a, int64_t step, int64_t rows, T* c, int64_t c_stride) const {
    const auto panel = [&](int64_t column, int64_t width) {
      return [panel = data + column * depth, width](int64_t k) { return panel + k * width; };
    };
    product<T, Add>(a, step, rows, panel, depth, columns, c, c_stride);
  }
};

// Pack `depth` rows of `width` elements into panels, with zeros up to `columns`. row(k) returns a row.
template <typename T, typename Row>
inline void pack_rows(const Row& row, int64_t depth, int64_t width, int64_t columns, T* panels) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  for (int64_t first = 0; first < columns; first += 2 * lanes) {
    const int64_t panel_width = std::min(2 * lanes, columns - first), filled = std::min(panel_width, width - first);
    T* to = panels + first * depth;
    for (int64_t k = 0; k < depth; ++k, to += panel_width) {
      const T* from = row(k) + first;
      if (filled == 2 * lanes) {
        Simd<T>::store(to, Simd<T>::load(from));
        Simd<T>::store(to + lanes, Simd<T>::load(from + lanes));
      } else {
        for (int64_t i = 0; i < panel_width; ++i) to[i] = i < filled ? from[i] : T(0);
      }
    }
  }
}

// Pack the transposed matrix: its column r is row(r), with `depth` elements.
template <typename T, typename Row>
inline void pack_columns(const Row& row, int64_t depth, int64_t columns, T* panels) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  for (int64_t first = 0; first < columns; first += 2 * lanes) {
    const int64_t panel_width = std::min(2 * lanes, columns - first);
    T* to = panels + first * depth;
    for (int64_t i = 0; i < panel_width; ++i) {
      const T* from = row(first + i);
      for (int64_t k = 0; k < depth; ++k) to[k * panel_width + i] = from[k];
    }
  }
}
