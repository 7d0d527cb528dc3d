// Products of small tiles, whose sums stay in registers for all steps.
//
// C[M, N] = A[M, K] B[K, N] over operands as operands.h makes them: A is row-major units; B holds
// the units of N columns side by side for each step along K, or is read straight from rows of
// values. Called by attention.h.
#pragma once

#include <type_traits>

#include "operands.h"

namespace shoal {

constexpr int kTileRows = 6;

struct Product {
  const Unit* a;  // [rows][lda]
  int lda;
  const Unit* b;  // [steps][ldb]; not of products with values where they lie
  int ldb;
  int steps;
  float* c;  // [rows][ldc]
  int ldc;
  const float* row_factors;  // C's old rows are kept, times these; nullptr: overwritten
};

// Rows of a cache, of which each step takes Dot::kPerUnit.
template <class T>
struct ValueRows {
  const T* const* rows;
  ptrdiff_t offset;  // of the head within each row
  int first, size;   // the columns wanted, of all
  LineFetcher* fetcher;
  int lines_per_step;  // to be fetched
};

namespace detail {

template <int kRows, int kVecs>
inline void load_sums(const Product& p, Vec (&sum)[kRows][kVecs]) {
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      if (p.row_factors == nullptr) {
        sum[m][v] = zero();
      } else {
        sum[m][v] = load(p.c + m * p.ldc + v * kLanes) * splat(p.row_factors[m]);
      }
    }
  }
}

template <int kRows, int kVecs>
inline void store_sums(const Product& p, const Vec (&sum)[kRows][kVecs]) {
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(p.c + m * p.ldc + v * kLanes, sum[m][v]);
  }
}

template <class Dot, int kRows, int kVecs>
inline void multiply_step(const Unit* a, int lda, const Vec (&columns)[kVecs],
                          Vec (&sum)[kRows][kVecs]) {
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
    const Vec row = Dot::broadcast(a + static_cast<ptrdiff_t>(m) * lda);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[m][v] = Dot::multiply_add(row, columns[v], sum[m][v]);
  }
}

template <class Dot, int kRows, int kVecs>
__attribute__((noinline)) void multiply_packed(const Product& p) {
  Vec sum[kRows][kVecs];
  load_sums(p, sum);
  const Unit* a = p.a;
  const float* b = reinterpret_cast<const float*>(p.b);
  for (int step = 0; step < p.steps; ++step, ++a, b += p.ldb) {
    Vec columns[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) columns[v] = load(b + v * kLanes);
    multiply_step<Dot>(a, p.lda, columns, sum);
  }
  store_sums(p, sum);
}

template <class Dot, int kRows, int kVecs, class T>
__attribute__((noinline)) void multiply_values(const Product& p, const ValueRows<T>& values) {
  Vec sum[kRows][kVecs];
  load_sums(p, sum);
  const Unit* a = p.a;
  const T* const* rows = values.rows;
  for (int step = 0; step < p.steps; ++step, ++a, rows += Dot::kPerUnit) {
    Vec columns[kVecs];
    values.fetcher->fetch(values.lines_per_step);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v += Dot::kVecGroup) {
      Dot::load_values(rows, values.offset, values.first + v * kLanes, values.size, columns + v);
    }
    multiply_step<Dot>(a, p.lda, columns, sum);
  }
  store_sums(p, sum);
}

// f(rows, vecs) with both as compile-time constants.
template <int kRows, class F>
inline void with_vecs(int num_vecs, F&& f) {
  using std::integral_constant;
  constexpr integral_constant<int, kRows> rows;
  switch (num_vecs) {
    case 1: return f(rows, integral_constant<int, 1>());
#if SHOAL_AVX512
    case 2: return f(rows, integral_constant<int, 2>());
    case 3: return f(rows, integral_constant<int, 3>());
#endif
    default: return f(rows, integral_constant<int, kTileVecs>());
  }
}

template <class F>
inline void with_shape(int num_rows, int num_vecs, F&& f) {
  switch (num_rows) {
    case 1: return with_vecs<1>(num_vecs, f);
    case 2: return with_vecs<2>(num_vecs, f);
    case 3: return with_vecs<3>(num_vecs, f);
    case 4: return with_vecs<4>(num_vecs, f);
    case 5: return with_vecs<5>(num_vecs, f);
    default: return with_vecs<6>(num_vecs, f);
  }
}

}  // namespace detail

// num_rows <= kTileRows, num_vecs <= kTileVecs.
template <class Dot>
void multiply(int num_rows, int num_vecs, const Product& p) {
  detail::with_shape(num_rows, num_vecs, [&](auto rows, auto vecs) {
    detail::multiply_packed<Dot, rows(), vecs()>(p);
  });
}

// As above; num_vecs: a multiple of Dot::kVecGroup.
template <class Dot, class T>
void multiply(int num_rows, int num_vecs, const Product& p, const ValueRows<T>& values) {
  detail::with_shape(num_rows, num_vecs, [&](auto rows, auto vecs) {
    if constexpr (vecs() % Dot::kVecGroup == 0) {
      detail::multiply_values<Dot, rows(), vecs()>(p, values);
    }
  });
}

}  // namespace shoal
