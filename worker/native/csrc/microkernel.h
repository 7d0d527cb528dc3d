// The innermost loops of products: a few rows by one panel of a packed weight.
//
// Owns the packed layout's constants and the kernels; knows nothing of tasks. All sum over k in
// ascending order with fused multiply-adds, so that which of them runs does not change a bit.
// Called by gemm.h.
#pragma once

#include <cstddef>
#include <cstring>

#include "vec.h"

namespace shoal {

constexpr int kPanel = 32;  // columns
constexpr int kDepth = 8;   // K is padded to a multiple of it
constexpr int kPanelVecs = kPanel / kLanes;

#if SHOAL_AVX512
constexpr int kMaxRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kMaxRows = 3;  // 12 of 16
#endif

namespace detail {

constexpr int kLineBytes = 64;
// How far before its use a stream is fetched, into the second cache: what is asked of the first
// waits for one of its few line buffers (a tenth to a sixth slower for one row to four).
constexpr int kAheadBytes = 8192;

template <int kLines>
inline void prefetch(const char* p) {
#pragma GCC unroll 8
  for (int i = 0; i < kLines; ++i) _mm_prefetch(p + i * kLineBytes, _MM_HINT_T1);
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

// Two neighbouring k of a panel, one after the other.
inline void widen_pair(const bf16* b, float* wide) {
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVecs; ++v) {
    const IntVec pairs = load_pairs(b + v * kLanes * 2);
    store(wide + v * kLanes, first_of_pairs(pairs));
    store(wide + kPanel + v * kLanes, second_of_pairs(pairs));
  }
}

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

template <int kRows>
inline void zero_sums(Vec (&acc)[kRows][kPanelVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) acc[r][v] = zero();
  }
}

template <int kRows>
inline void load_sums(const float* sums, Vec (&acc)[kRows][kPanelVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) acc[r][v] = load(sums + r * kPanel + v * kLanes);
  }
}

template <int kRows>
inline void store_sums(const Vec (&acc)[kRows][kPanelVecs], float* sums) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) store(sums + r * kPanel + v * kLanes, acc[r][v]);
  }
}

// sums: [kRows][kPanel]. `ahead` is fetched along the way, one line for every kShare of the
// panel's own.
template <int kRows, int kShare, class X, class W>
inline void multiply(const X* a, ptrdiff_t stride, const W* b, int depth, const char* ahead,
                     float* sums) {
  constexpr int kStepBytes = kDepth * kPanel * sizeof(W);
  constexpr int kLines = kStepBytes / kLineBytes / kShare;
  Vec acc[kRows][kPanelVecs];
  zero_sums<kRows>(acc);
  for (int k = 0; k < depth; k += kDepth) {
    prefetch<kLines>(ahead);
    ahead += kLines * kLineBytes;
#pragma GCC unroll 4
    for (int i = 0; i < kDepth; i += 2)
      multiply_pair<kRows>(acc, a + i, stride, b + i * kPanel);
    a += kDepth;
    b += kDepth * kPanel;
  }
  store_sums<kRows>(acc, sums);
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

// Widened numbers of this depth stay in the first cache beside the rows that they meet.
constexpr int kChunkDepth = 192;

// Part of a panel's depth, widened once for many rows.
struct WideChunk {
  float* columns;  // [depth][kPanel]
  int depth;
  bool is_first;    // else the sums go on
  int lines_ahead;  // to be fetched for every kDepth of the depth
};

// The products of a stripe with a chunk. The first stripe widens the chunk on its way, from b.
template <int kRows, bool kWidens>
inline void multiply_chunk(const float* a, ptrdiff_t stride, const bf16* b, const WideChunk& chunk,
                           const char* ahead, float* sums) {
  Vec acc[kRows][kPanelVecs];
  if (chunk.is_first) {
    zero_sums<kRows>(acc);
  } else {
    load_sums<kRows>(sums, acc);
  }
  float* wide = chunk.columns;
  for (int k = 0; k < chunk.depth; k += kDepth) {
    for (int i = 0; i < chunk.lines_ahead; ++i, ahead += kLineBytes) prefetch<1>(ahead);
#pragma GCC unroll 4
    for (int i = 0; i < kDepth; i += 2) {
      if constexpr (kWidens) widen_pair(b + i * kPanel, wide + i * kPanel);
      multiply_pair<kRows>(acc, a + i, stride, wide + i * kPanel);
    }
    a += kDepth;
    if constexpr (kWidens) b += kDepth * kPanel;
    wide += kDepth * kPanel;
  }
  store_sums<kRows>(acc, sums);
}

// The kernel for so many rows; b: null but for the first stripe.
template <int kRows = kMaxRows>
__attribute__((noinline)) void multiply_chunk_some(int num_rows, const float* a, ptrdiff_t stride,
                                                   const bf16* b, const WideChunk& chunk,
                                                   const char* ahead, float* sums) {
  if constexpr (2 * kRows > kMaxRows + 1) {  // no shorter ones come of an even cut
    if (num_rows < kRows) {
      return multiply_chunk_some<kRows - 1>(num_rows, a, stride, b, chunk, ahead, sums);
    }
  }
  if (b != nullptr) return multiply_chunk<kRows, true>(a, stride, b, chunk, ahead, sums);
  multiply_chunk<kRows, false>(a, stride, nullptr, chunk, ahead, sums);
}

}  // namespace detail

}  // namespace shoal
