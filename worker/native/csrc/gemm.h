// Matrix products with weights packed once: y = x W^T for one row to thousands.
//
// Owns the packed layout, its micro-kernels and how a product is cut into tasks; what happens to a
// finished tile is the caller's (`Epilogue`). A weight [N, K] becomes panels of 32 of its rows, the
// product's columns, each read as one sequential stream:
//
//     fp32  [N / 32][K][32]          bf16  [N / 32][K / 2][32][2]     (N, K padded with zeros)
//
// so that one copy serves single rows, at the speed memory is read, and prompts. Every result is
// summed over k in ascending order, whatever the number of rows: it does not depend on the batch.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "team.h"
#include "vec.h"

namespace shoal {

constexpr int kPanel = 32;  // columns
constexpr int kDepth = 8;   // K is padded to a multiple of it
constexpr int kPanelVecs = kPanel / kLanes;

// The type in which a product reads its rows: bf16 only where the CPU multiplies it.
template <class W>
struct InputOf {
  using type = float;
};
#if SHOAL_BF16_DOT
template <>
struct InputOf<bf16> {
  using type = bf16;
};
#endif
template <class W>
using Input = typename InputOf<W>::type;

// A packed weight. Of a gated pair of weights each panel holds 16 columns of the gate, then the
// same 16 of the other.
template <class W>
struct Packed {
  const W* data = nullptr;
  const float* bias = nullptr;  // padded and ordered as the columns, or null
  int num_panels = 0;
  int depth = 0;  // K, padded
  const W* panel(int p) const { return data + static_cast<ptrdiff_t>(p) * depth * kPanel; }
};

// The rows of a product. Columns from K to the padded depth must be zeros.
template <class T>
struct Rows {
  T* data = nullptr;
  int stride = 0;  // elements
  T* row(int r) const { return data + static_cast<ptrdiff_t>(r) * stride; }
};

// A finished tile: sums of up to kMaxRows rows by one panel.
struct Tile {
  int first_row;
  int num_rows;
  int panel;
  const float* sums;  // [num_rows][kPanel], aligned
};

#if SHOAL_AVX512
constexpr int kMaxRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kMaxRows = 3;  // 12 of 16
#endif

namespace detail {

constexpr int kLineBytes = 64;
constexpr int kAheadBytes = 4096;  // how far before its use a stream is fetched (measured best)

template <int kLines>
inline void prefetch(const char* p) {
#pragma GCC unroll 8
  for (int i = 0; i < kLines; ++i) _mm_prefetch(p + i * kLineBytes, _MM_HINT_T0);
}

// acc[r] += row r's number times a vector, for one k.
template <int kRows>
inline void multiply_add(Vec (&acc)[kRows][kPanelVecs], const float* a, ptrdiff_t stride,
                         const Vec (&b)[kPanelVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Vec x = splat(a[r * stride]);
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) acc[r][v] = fma(x, b[v], acc[r][v]);
  }
}

// Two neighbouring k of a panel.
template <int kRows>
inline void multiply_pair(Vec (&acc)[kRows][kPanelVecs], const float* a, ptrdiff_t stride,
                          const float* b) {
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    Vec columns[kPanelVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) columns[v] = load(b + i * kPanel + v * kLanes);
    multiply_add<kRows>(acc, a + i, stride, columns);
  }
}

inline IntVec load_pairs(const bf16* p) {
#if SHOAL_AVX512
  return _mm512_loadu_si512(p);
#else
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
#endif
}

#if SHOAL_AVX512
inline Vec first_of_pairs(IntVec x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline Vec second_of_pairs(IntVec x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
#else
inline Vec first_of_pairs(IntVec x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline Vec second_of_pairs(IntVec x) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
#endif

template <int kRows>
inline void multiply_pair(Vec (&acc)[kRows][kPanelVecs], const float* a, ptrdiff_t stride,
                          const bf16* b) {
  Vec first[kPanelVecs], second[kPanelVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVecs; ++v) {
    const IntVec pairs = load_pairs(b + v * kLanes * 2);
    first[v] = first_of_pairs(pairs);
    second[v] = second_of_pairs(pairs);
  }
  multiply_add<kRows>(acc, a, stride, first);
  multiply_add<kRows>(acc, a + 1, stride, second);
}

#if SHOAL_BF16_DOT
template <int kRows>
inline void multiply_pair(Vec (&acc)[kRows][kPanelVecs], const bf16* a, ptrdiff_t stride,
                          const bf16* b) {
  __m512bh columns[kPanelVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVecs; ++v) columns[v] = (__m512bh)load_pairs(b + v * kLanes * 2);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    int pair;
    std::memcpy(&pair, a + r * stride, sizeof pair);
    const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, columns[v]);
  }
}
#endif

// sums: [kRows][kPanel]. `ahead` is fetched along the way, one line for every kShare of the
// panel's own.
template <int kRows, int kShare, class X, class W>
inline void multiply(const X* a, ptrdiff_t stride, const W* b, int depth,
                                        const char* ahead, float* sums) {
  constexpr int kStepBytes = kDepth * kPanel * sizeof(W);
  constexpr int kLines = kStepBytes / kLineBytes / kShare;
  Vec acc[kRows][kPanelVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPanelVecs; ++v) acc[r][v] = zero();
  for (int k = 0; k < depth; k += kDepth) {
    prefetch<kLines>(ahead);
    ahead += kLines * kLineBytes;
#pragma GCC unroll 4
    for (int i = 0; i < kDepth; i += 2)
      multiply_pair<kRows>(acc, a + i, stride, b + i * kPanel);
    a += kDepth;
    b += kDepth * kPanel;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPanelVecs; ++v) store(sums + r * kPanel + v * kLanes, acc[r][v]);
}

// The kernel for so many rows. Not inlined: one copy serves every epilogue.
template <class X, class W, int kRows = kMaxRows>
__attribute__((noinline)) void multiply_some(int num_rows, int num_stripes, const X* a,
                                             ptrdiff_t stride, const W* b, int depth,
                                             const char* ahead, float* sums) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) {
      return multiply_some<X, W, kRows - 1>(num_rows, num_stripes, a, stride, b, depth, ahead,
                                            sums);
    }
  }
  if (num_stripes == 1) return multiply<kRows, 1>(a, stride, b, depth, ahead, sums);
  if constexpr (2 * kRows >= kMaxRows) {  // no shorter ones come of an even cut
    if (num_stripes == 2) return multiply<kRows, 2>(a, stride, b, depth, ahead, sums);
    return multiply<kRows, 4>(a, stride, b, depth, ahead, sums);
  }
}

inline int rows_in_cache(int row_bytes) {
  static const long l2_bytes = std::max(sysconf(_SC_LEVEL2_CACHE_SIZE), 512L << 10);
  const int fitting = static_cast<int>(l2_bytes / 2 / row_bytes);
  return std::clamp(fitting / kMaxRows, 2, 16) * kMaxRows;
}

}  // namespace detail

// How a product is cut: blocks of rows that stay in a core's cache, by panels.
struct Cut {
  int num_rows, block_rows, num_blocks, num_panels;
  int num_tasks() const { return num_blocks * num_panels; }
};

template <class X, class W>
Cut cut(int num_rows, const Packed<W>& weight) {
  const int most = detail::rows_in_cache(weight.depth * static_cast<int>(sizeof(X)));
  const int num_blocks = std::max(1, (num_rows + most - 1) / most);
  const int block_rows = (num_rows + num_blocks - 1) / num_blocks;
  return {num_rows, block_rows, num_blocks, weight.num_panels};
}

// Computes one task of a cut, tile by tile. epilogue(const Tile&).
template <class X, class W, class Epilogue>
void run_task(const Cut& c, int task, const Rows<X>& x, const Packed<W>& weight,
              Epilogue&& epilogue) {
  alignas(64) float sums[kMaxRows * kPanel];
  const int panel = task % c.num_panels, block = task / c.num_panels;
  const int begin = block * c.block_rows, end = std::min(c.num_rows, begin + c.block_rows);
  const int num_stripes = (end - begin + kMaxRows - 1) / kMaxRows;
  const W* b = weight.panel(panel);
  const ptrdiff_t panel_bytes = ptrdiff_t{weight.depth} * kPanel * sizeof(W);
  const char* ahead = reinterpret_cast<const char*>(b);
  ahead += num_stripes == 1 ? detail::kAheadBytes : panel_bytes;
  const ptrdiff_t share = panel_bytes / (num_stripes == 1 ? 1 : num_stripes == 2 ? 2 : 4);
  for (int i = 0; i < num_stripes; ++i) {
    const int first = begin + (end - begin) * i / num_stripes;
    const int last = begin + (end - begin) * (i + 1) / num_stripes;
    detail::multiply_some<X, W>(last - first, num_stripes, x.row(first), x.stride, b, weight.depth,
                                ahead + (i & 3) * share, sums);
    epilogue(Tile{first, last - first, panel, sums});
  }
}

// One phase: all members call it alike.
template <class X, class W, class Epilogue>
void multiply(Member& member, const Rows<X>& x, int num_rows, const Packed<W>& weight,
              Epilogue&& epilogue) {
  const Cut c = cut<X>(num_rows, weight);
  member.begin(c.num_tasks());
  for (int task; (task = member.next()) >= 0;) run_task(c, task, x, weight, epilogue);
}

}  // namespace shoal
