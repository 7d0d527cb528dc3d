// What a step's phases are made of: work by rows, and where the tiles of a product go.
//
// Called by program.h and its parts on every member of a team alike; owns nothing.
#pragma once

#include "gemm.h"

namespace shoal {

constexpr int kRowsPerTask = 4;

// Where a part of a layer leaves its result: added to the residual stream, or stored.
struct Target {
  Rows<float> rows;
  float multiplier = 1.0f;
  bool is_added = false;

  void leave(int row, int column, Vec y) const {
    float* place = rows.row(row) + column;
    const Vec factor = splat(multiplier);
    store(place, is_added ? fma(y, factor, load(place)) : y * factor);
  }
};

// A phase that calls body(row) for every row.
template <class Body>
void for_rows(Member& m, int num_rows, Body&& body) {
  m.begin((num_rows + kRowsPerTask - 1) / kRowsPerTask);
  for (int task; (task = m.next()) >= 0;) {
    const int end = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (int r = task * kRowsPerTask; r < end; ++r) body(r);
  }
}

// A tile's sums with the bias: body(row, column, vector).
template <class Body>
void for_vectors(const Tile& t, const float* bias, Body&& body) {
  for (int v = 0; v < kPanel; v += kLanes) {
    const int column = t.panel * kPanel + v;
    const Vec b = bias != nullptr ? load(bias + column) : zero();
    for (int r = 0; r < t.num_rows; ++r) {
      body(t.first_row + r, column, load(t.sums + r * kPanel + v) + b);
    }
  }
}

// Of a gated pair: the first half of the tile's columns is the gate, the second what it is
// multiplied with.
template <class X, class Activation>
void keep_gated(const Tile& t, const float* bias, Activation activation, const Rows<X>& out) {
  constexpr int kHalf = kPanel / 2;
  for (int v = 0; v < kHalf; v += kLanes) {
    const float* b = bias != nullptr ? bias + t.panel * kPanel + v : nullptr;
    const Vec gate_bias = b != nullptr ? load(b) : zero();
    const Vec up_bias = b != nullptr ? load(b + kHalf) : zero();
    for (int r = 0; r < t.num_rows; ++r) {
      const float* sums = t.sums + r * kPanel + v;
      const Vec y = activation(load(sums) + gate_bias) * (load(sums + kHalf) + up_bias);
      store(out.row(t.first_row + r) + t.panel * kHalf + v, y);
    }
  }
}

}  // namespace shoal
