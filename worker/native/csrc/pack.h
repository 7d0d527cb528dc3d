// Brings weights into the panels of gemm.h, and looks single rows up in them again.
//
// Called once for each weight while a model is loaded; rows are looked up where a head shares its
// weight with the embedding.
#pragma once

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

// A row from number `first` on into its column, one by one.
template <class W>
void pack_numbers(const Matrix<W>& m, const W* row, int first, int column, W* panel) {
  for (int k = first; k < m.num_columns; ++k) {
    panel[place_in_panel<W>(k, column)] = row[k * m.column_stride];
  }
}

// The rows of a panel where their numbers are neighbours: in blocks of a cache line of each row,
// moved in units of 32 bits. Null rows are padding.
template <class W>
void pack_lines(const Matrix<W>& m, const W* const* rows, W* panel) {
  constexpr int kUnitsPerLine = 16, kPerUnit = 4 / sizeof(W);
  const int num_units = m.num_columns / kPerUnit;
  for (int begin = 0; begin < num_units; begin += kUnitsPerLine) {
    const int end = std::min(num_units, begin + kUnitsPerLine);
    for (int c = 0; c < kPanel; ++c) {
      if (rows[c] == nullptr) continue;
      for (int u = begin; u < end; ++u) {
        std::memcpy(panel + (u * kPanel + c) * kPerUnit, rows[c] + u * kPerUnit, 4);
      }
    }
  }
  for (int c = 0; c < kPanel; ++c) {
    if (rows[c] != nullptr) pack_numbers(m, rows[c], num_units * kPerUnit, c, panel);
  }
}

}  // namespace detail

// Panel number p of a weight, or of a gated pair of them; `panel` must be zeroed.
template <class W>
void pack_panel(const Matrix<W>& first, const Matrix<W>* second, int p, W* panel) {
  const int from_each = second != nullptr ? kPanel / 2 : kPanel;
  const W* rows[kPanel];
  for (int c = 0; c < kPanel; ++c) {
    const int row = p * from_each + c % from_each;
    const Matrix<W>& m = c < from_each ? first : *second;
    rows[c] = row < m.num_rows ? m.data + row * m.row_stride : nullptr;
  }
  if (first.column_stride == 1) return detail::pack_lines(first, rows, panel);
  for (int c = 0; c < kPanel; ++c) {
    if (rows[c] != nullptr) detail::pack_numbers(first, rows[c], 0, c, panel);
  }
}

// Row `row` of a packed weight, widened and multiplied.
template <class W>
void unpack_row(const Packed<W>& weight, int row, int num_columns, float multiplier, float* y) {
  const W* panel = weight.panel(row / kPanel);
  for (int k = 0; k < num_columns; ++k) {
    y[k] = to_float(panel[place_in_panel<W>(k, row % kPanel)]) * multiplier;
  }
}

}  // namespace shoal
