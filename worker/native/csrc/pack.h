// Brings weights into the panels of gemm.h, and looks single rows up in them again.
//
// Called while a model is loaded, for each piece of a weight once; rows are looked up where a head
// shares its weight with the embedding. Where a row of the weight goes, the caller says.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace shoal {

// A matrix [num_rows, num_columns] with any strides, in elements.
template <class W>
struct Matrix {
  const W* data;
  int64_t row_stride, column_stride;
  int num_rows, num_columns;
};

// Where column c of a panel holds number k.
template <class W>
constexpr int place_in_panel(int k, int c) {
  return sizeof(W) == 2 ? k / 2 * 2 * kPanel + c * 2 + k % 2 : k * kPanel + c;
}

namespace detail {

// A panel is a list of units: 32 bits of each of its columns, so two lines of memory.
constexpr int kUnitsPerLine = kLineBytes / 4;
constexpr int kHalf = kPanel / 2;  // columns of a line of the panel
static_assert(kHalf * 4 == kLineBytes);

template <class W>
constexpr int kPerUnit = 4 / sizeof(W);

// The columns [c, c + 16) whose rows are given: one line of each row into one line of each unit.
template <class W>
void pack_block(const W* const* rows, int first, int c, W* panel) {
  for (int i = c; i < c + kHalf; ++i) {
    if (rows[i] == nullptr) continue;
    for (int u = first; u < first + kUnitsPerLine; ++u) {
      std::memcpy(panel + (u * kPanel + i) * kPerUnit<W>, rows[i] + u * kPerUnit<W>, 4);
    }
  }
}

#if SHOAL_AVX512

// 16 x 16 numbers of 32 bits: to[i] holds number i of each of `from`.
inline void transpose(const IntVec* from, IntVec* to) {
  IntVec pairs[16], quads[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // quads[i + j]: of rows i to i + 3, numbers j, j + 4, ...
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const IntVec even_upper = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
    const IntVec even_lower = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
    const IntVec odd_upper = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xdd);
    const IntVec odd_lower = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xdd);
    to[j] = _mm512_shuffle_i32x4(even_upper, even_lower, 0x88);
    to[4 + j] = _mm512_shuffle_i32x4(odd_upper, odd_lower, 0x88);
    to[8 + j] = _mm512_shuffle_i32x4(even_upper, even_lower, 0xdd);
    to[12 + j] = _mm512_shuffle_i32x4(odd_upper, odd_lower, 0xdd);
  }
}

// As `pack_block` with all rows there. Past the caches: nobody reads a weight before all are packed,
// and a line that is written whole need not be read first (7.5 GB/s a core; through the caches 4.1,
// number by number 3.5).
template <class W>
void pack_block_fast(const W* const* rows, int first, int c, W* panel) {
  IntVec lines[16], units[16];
  for (int i = 0; i < 16; ++i) lines[i] = _mm512_loadu_si512(rows[c + i] + first * kPerUnit<W>);
  transpose(lines, units);
  for (int i = 0; i < 16; ++i) {
    W* line = panel + ((first + i) * kPanel + c) * kPerUnit<W>;
    _mm512_stream_si512(reinterpret_cast<IntVec*>(line), units[i]);
  }
}

// What was written past the caches is seen by others before what is written after this.
inline void finish_packing() { _mm_sfence(); }

inline bool can_pack_fast(const void* panel) {
  return reinterpret_cast<uintptr_t>(panel) % kLineBytes == 0;
}

#else

template <class W>
void pack_block_fast(const W* const* rows, int first, int c, W* panel) {
  pack_block(rows, first, c, panel);
}
inline void finish_packing() {}
inline bool can_pack_fast(const void*) { return false; }

#endif

// Numbers from `first` on, one by one, in the order of the panel: where a weight lies in columns,
// the numbers of a panel's row are neighbours.
template <class W>
void pack_numbers(const Matrix<W>& m, const W* const* rows, int first, W* panel) {
  for (int k = first; k < m.num_columns; ++k) {
    for (int c = 0; c < kPanel; ++c) {
      if (rows[c] != nullptr) {
        panel[place_in_panel<W>(k, c)] = rows[c][k * m.column_stride];
      }
    }
  }
}

// Columns of one panel; null rows are left as they are.
template <class W>
void pack_panel(const Matrix<W>& m, const W* const* rows, W* panel) {
  if (m.column_stride != 1) return pack_numbers(m, rows, 0, panel);
  const int num_units = m.num_columns / kPerUnit<W> / kUnitsPerLine * kUnitsPerLine;
  for (int c = 0; c < kPanel; c += kHalf) {
    const int num_rows = kHalf - static_cast<int>(std::count(rows + c, rows + c + kHalf, nullptr));
    if (num_rows == 0) continue;
    const bool is_fast = num_rows == kHalf && can_pack_fast(panel);
    const auto pack = is_fast ? pack_block_fast<W> : pack_block<W>;
    for (int u = 0; u < num_units; u += kUnitsPerLine) pack(rows, u, c, panel);
  }
  pack_numbers(m, rows, num_units * kPerUnit<W>, panel);
}

}  // namespace detail

// Rows [first, last) of the matrix become these columns of a packed weight, counted over all of its
// panels; the rest of the weight stays as it is. `out`: [panels, depth, 32]. Threads may pack
// different rows of one weight at once.
template <class W>
void pack_rows(const Matrix<W>& m, const int32_t* columns, int first, int last, W* out, int depth) {
  for (int row = first; row < last;) {
    const int panel = columns[row] / kPanel;
    const W* rows[kPanel] = {};
    for (; row < last && columns[row] / kPanel == panel; ++row) {
      rows[columns[row] % kPanel] = m.data + row * m.row_stride;
    }
    detail::pack_panel(m, rows, out + static_cast<ptrdiff_t>(panel) * depth * kPanel);
  }
  detail::finish_packing();
}

// The same of a coded weight.
inline void decode_row(const Packed<bf16>& weight, int row, int num_columns, float multiplier,
                       float* y) {
  const uint8_t* panel = weight.coded_panel(row / kPanel);
  const PanelCode& code = weight.codes[row / kPanel];
  const int column = row % kPanel;
  for (int k = 0; k < num_columns; ++k) {
    y[k] = to_float(decode(panel, code, k, column)) * multiplier;
  }
  const Stray* strays = weight.strays + code.first_stray;
  for (int i = 0; i < code.num_strays; ++i) {
    if (strays[i].column == column) y[strays[i].k] = to_float(strays[i].value) * multiplier;
  }
}

// Row `row` of a packed weight, widened and multiplied.
template <class W>
void unpack_row(const Packed<W>& weight, int row, int num_columns, float multiplier, float* y) {
  if constexpr (std::is_same_v<W, bf16>) {
    if (weight.codes != nullptr) return decode_row(weight, row, num_columns, multiplier, y);
  }
  const W* panel = weight.panel(row / kPanel);
  for (int k = 0; k < num_columns; ++k) {
    y[k] = to_float(panel[place_in_panel<W>(k, row % kPanel)]) * multiplier;
  }
}

}  // namespace shoal
