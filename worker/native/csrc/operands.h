// Rows of a KV cache as operands of small matrix products.
//
// An operand consists of 32-bit units along the summed dimension: one fp32 number, or a pair of
// bf16 numbers where the CPU multiplies pairs. There are three kinds of products, one for each type
// of numbers and what the CPU has; each knows how rows become columns (keys), how they become steps
// (values), and the order of columns that its packing leaves. Called by attention.h and tile.h.
#pragma once

#include <cstddef>

#include "vec.h"

namespace shoal {

constexpr int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

#if SHOAL_AVX512
constexpr int kTileVecs = 4;  // 6 x 4 sums, 4 columns and a broadcast in 32 registers
#else
constexpr int kTileVecs = 2;  // 6 x 2 in 16 registers
#endif
constexpr int kTileColumns = kTileVecs * kLanes;

using Unit = uint32_t;

#if SHOAL_AVX512
inline void transpose(Vec x[16]) {
  Vec y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(y[i]), b = _mm512_castps_pd(y[i + 1]);
    const __m512d c = _mm512_castps_pd(y[i + 2]), d = _mm512_castps_pd(y[i + 3]);
    x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // Lane l of x[4 g + c] now holds column 4 l + c of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const Vec a = _mm512_shuffle_f32x4(x[c], x[c + 4], 0x44);
    const Vec b = _mm512_shuffle_f32x4(x[c], x[c + 4], 0xee);
    const Vec d = _mm512_shuffle_f32x4(x[c + 8], x[c + 12], 0x44);
    const Vec e = _mm512_shuffle_f32x4(x[c + 8], x[c + 12], 0xee);
    y[c] = _mm512_shuffle_f32x4(a, d, 0x88);
    y[c + 4] = _mm512_shuffle_f32x4(a, d, 0xdd);
    y[c + 8] = _mm512_shuffle_f32x4(b, e, 0x88);
    y[c + 12] = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}
#else
inline void transpose(Vec x[8]) {
  Vec y[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
    x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
    x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
    x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
    y[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) x[i] = y[i];
}
#endif

// kLanes units of a row from number `first` on, as they lie; zeros beyond the row's `size`.
inline Vec load_units(const float* row, int first, int size) {
  const int left = size - first;
  return left >= kLanes ? load(row + first) : load(row + first, left);
}

inline Vec load_units(const bf16* row, int first, int size) {
  const int left = size - first;
  const float* units = reinterpret_cast<const float*>(row + first);
  if (left >= 2 * kLanes) return load(units);
#if SHOAL_AVX512
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1u << left) - 1u, row + first));
#else
  alignas(32) bf16 part[2 * kLanes] = {};
  std::memcpy(part, row + first, left * sizeof(bf16));
  return load(reinterpret_cast<const float*>(part));
#endif
}

// Units `first` .. `first` + kLanes - 1 of kLanes rows: x[i] holds unit i of every row.
template <class T>
inline void load_transposed(const T* const* rows, ptrdiff_t offset, int first, int size,
                            Vec x[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) x[i] = load_units(rows[i] + offset, first, size);
  transpose(x);
}

// Fetches rows of memory line by line, a few lines at a time between other work.
//
// A core waits for a dozen lines at most, so a burst of requests stalls it; and only rows fetched
// in the order they lie in make the CPU's own prefetcher run ahead.
class LineFetcher {
 public:
  template <class T>
  void start(const T* const* rows, int num_rows, int row_size) {
    rows_ = reinterpret_cast<const char* const*>(rows);
    num_rows_ = num_rows;
    num_bytes_ = row_size * static_cast<int>(sizeof(T));
    row_ = at_ = 0;
  }

  int num_lines() const { return num_rows_ * ((num_bytes_ + kLine - 1) / kLine); }

  void fetch(int num_lines) {
    for (; num_lines > 0 && row_ < num_rows_; --num_lines) {
      fetch_line(rows_[row_] + at_);
      at_ += kLine;
      if (at_ >= num_bytes_) {
        at_ = 0;
        ++row_;
      }
    }
  }

 private:
  static constexpr int kLine = 64;
  const char* const* rows_ = nullptr;
  int num_rows_ = 0, num_bytes_ = 0, row_ = 0, at_ = 0;
};

// x * factor to y, as far as y's `left` numbers go.
template <class T>
inline void store_some(T* y, Vec x, int left) {
  if (left >= kLanes) {
    store(y, x);
  } else if (left > 0) {
    store(y, x, left);
  }
}

inline Vec broadcast_fp32(const Unit* a) { return splat(*reinterpret_cast<const float*>(a)); }

// fp32 numbers.
struct Fp32Dot {
  static constexpr int kPerUnit = 1;
  static constexpr int kVecGroup = 1;  // columns of values come in so many vectors at a time
  static constexpr int kSquare = kLanes;  // numbers of a key that are turned at a time

  static Vec broadcast(const Unit* a) { return broadcast_fp32(a); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static int padded_width(int n) { return round_up(n, kLanes); }

  // A row of A: num_units(size) units.
  static void pack_row(const float* row, int size, Unit* out) {
    std::memcpy(out, row, size * sizeof(float));
  }

  // kLanes rows become kLanes columns: out[step][kTileColumns].
  // Calls between() before each square of them.
  template <class Between>
  static void pack_keys(const float* const* rows, ptrdiff_t offset, int size, Unit* out,
                        Between&& between) {
    float* y = reinterpret_cast<float*>(out);
    for (int first = 0; first < size; first += kLanes) {
      Vec x[kLanes];
      between();
      load_transposed(rows, offset, first, size, x);
      const int last = size - first < kLanes ? size - first : kLanes;
      for (int i = 0; i < last; ++i) store(y + (first + i) * kTileColumns, x[i]);
    }
  }

  // One step of kPerUnit rows: columns `first` .. of `size`, kVecGroup vectors of them.
  static void load_values(const float* const* rows, ptrdiff_t offset, int first, int size,
                          Vec* columns) {
    columns[0] = load_units(rows[0] + offset, first, size);
  }

  // x[padded_width] * factor, with columns as pack_values leaves them, to y[size].
  template <class Out>
  static void store_row(const float* x, float factor, int size, Out* y) {
    for (int d = 0; d < size; d += kLanes) store_some(y + d, load(x + d) * splat(factor), size - d);
  }

  // kLanes numbers of a row of A.
  static void store_units(Unit* row, int first, Vec x) {
    store(reinterpret_cast<float*>(row) + first, x);
  }
};

inline Vec first_of_pairs(Vec x) {
#if SHOAL_AVX512
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
#else
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
#endif
}

inline Vec second_of_pairs(Vec x) {
#if SHOAL_AVX512
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xffff0000))));
#else
  const IntVec mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x), mask));
#endif
}

// bf16 numbers multiplied as fp32 ones. Pairs are widened after the transposition, so that it
// moves half as much; of 2 * kLanes columns of values the even ones stand before the odd ones.
struct WidenedDot {
  static constexpr int kPerUnit = 1;
  static constexpr int kVecGroup = 2;
  static constexpr int kSquare = 2 * kLanes;

  static Vec broadcast(const Unit* a) { return broadcast_fp32(a); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static int padded_width(int n) { return round_up(n, 2 * kLanes); }

  static void pack_row(const float* row, int size, Unit* out) {
    std::memcpy(out, row, size * sizeof(float));
  }

  template <class Between>
  static void pack_keys(const bf16* const* rows, ptrdiff_t offset, int size, Unit* out,
                        Between&& between) {
    float* y = reinterpret_cast<float*>(out);
    for (int first = 0; first < size; first += 2 * kLanes) {
      Vec x[kLanes];
      between();
      load_transposed(rows, offset, first, size, x);
      const int last = size - first < 2 * kLanes ? size - first : 2 * kLanes;
      for (int i = 0; i < last; i += 2, y += 2 * kTileColumns) {
        store(y, first_of_pairs(x[i / 2]));
        if (i + 1 < last) store(y + kTileColumns, second_of_pairs(x[i / 2]));
      }
    }
  }

  static void load_values(const bf16* const* rows, ptrdiff_t offset, int first, int size,
                          Vec* columns) {
    const Vec pairs = load_units(rows[0] + offset, first, size);
    columns[0] = first_of_pairs(pairs);
    columns[1] = second_of_pairs(pairs);
  }

  template <class Out>
  static void store_row(const float* x, float factor, int size, Out* y) {
    const Vec f = splat(factor);
    for (int d = 0; d < size; d += 2 * kLanes) {
      Vec a = load(x + d) * f, b = load(x + d + kLanes) * f;
      interleave(a, b);
      store_some(y + d, a, size - d);
      store_some(y + d + kLanes, b, size - d - kLanes);
    }
  }

  static void store_units(Unit* row, int first, Vec x) {
    store(reinterpret_cast<float*>(row) + first, x);
  }

 private:
  static void interleave(Vec& a, Vec& b) {
#if SHOAL_AVX512
    const IntVec low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const IntVec high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const Vec first = _mm512_permutex2var_ps(a, low, b);
    b = _mm512_permutex2var_ps(a, high, b);
    a = first;
#else
    const Vec low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    a = _mm256_permute2f128_ps(low, high, 0x20);
    b = _mm256_permute2f128_ps(low, high, 0x31);
#endif
  }
};

#if SHOAL_BF16_DOT
// Pairs of bf16 numbers. Values are interleaved within 128-bit lanes, so that of 32 columns 0-3,
// 8-11, 16-19, 24-27 stand before the others.
struct PairDot {
  static constexpr int kPerUnit = 2;
  static constexpr int kVecGroup = 2;
  static constexpr int kSquare = 2 * kLanes;

  static Vec broadcast(const Unit* a) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*a)));
  }
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
  }
  static int padded_width(int n) { return round_up(n, 2 * kLanes); }

  static void pack_row(const float* row, int size, Unit* out) {
    out[(size - 1) / 2] = 0;
    bf16* y = reinterpret_cast<bf16*>(out);
    for (int d = 0; d < size; d += kLanes) {
      const int left = size - d;
      left >= kLanes ? store(y + d, load(row + d)) : store(y + d, load(row + d, left), left);
    }
  }

  template <class Between>
  static void pack_keys(const bf16* const* rows, ptrdiff_t offset, int size, Unit* out,
                        Between&& between) {
    float* y = reinterpret_cast<float*>(out);
    for (int first = 0; first < size; first += 2 * kLanes) {
      Vec x[kLanes];
      between();
      load_transposed(rows, offset, first, size, x);
      const int last = size - first < 2 * kLanes ? (size - first + 1) / 2 : kLanes;
      for (int i = 0; i < last; ++i, y += kTileColumns) store(y, x[i]);
    }
  }

  static void load_values(const bf16* const* rows, ptrdiff_t offset, int first, int size,
                          Vec* columns) {
    const IntVec a = _mm512_castps_si512(load_units(rows[0] + offset, first, size));
    const IntVec b = _mm512_castps_si512(load_units(rows[1] + offset, first, size));
    columns[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b));
    columns[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b));
  }

  template <class Out>
  static void store_row(const float* x, float factor, int size, Out* y) {
    const IntVec low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const IntVec high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const Vec f = splat(factor);
    for (int d = 0; d < size; d += 2 * kLanes) {
      const Vec a = load(x + d) * f, b = load(x + d + kLanes) * f;
      store_some(y + d, _mm512_permutex2var_ps(a, low, b), size - d);
      store_some(y + d + kLanes, _mm512_permutex2var_ps(a, high, b), size - d - kLanes);
    }
  }

  static void store_units(Unit* row, int first, Vec x) {
    store(reinterpret_cast<bf16*>(row) + first, x);
  }
};
#endif

// How numbers of type T are multiplied.
template <class T>
struct DotOf {
  using type = Fp32Dot;
};
template <>
struct DotOf<bf16> {
#if SHOAL_BF16_DOT
  using type = PairDot;
#else
  using type = WidenedDot;
#endif
};

// Units of a row of `size` numbers.
template <class Dot>
constexpr int num_units(int size) {
  return (size + Dot::kPerUnit - 1) / Dot::kPerUnit;
}

// kLanes rows of values become as many numbers along each column: out[step][padded width].
template <class Dot, class T>
inline void pack_values(const T* const* rows, ptrdiff_t offset, int size, Unit* out) {
  const int width = Dot::padded_width(size);
  float* y = reinterpret_cast<float*>(out);
  for (int j = 0; j < kLanes; j += Dot::kPerUnit) {
    for (int d = 0; d < width; d += Dot::kVecGroup * kLanes, y += Dot::kVecGroup * kLanes) {
      Vec columns[Dot::kVecGroup];
      Dot::load_values(rows + j, offset, d, size, columns);
      for (int v = 0; v < Dot::kVecGroup; ++v) store(y + v * kLanes, columns[v]);
    }
  }
}

}  // namespace shoal
