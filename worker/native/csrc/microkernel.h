// The innermost loops of products: a few rows by one panel of a packed weight.
//
// Owns the packed layout's constants and the kernels; knows nothing of tasks. All sum over k in
// ascending order with fused multiply-adds, so that which of them runs does not change a bit.
// Called by gemm.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "bf12.h"
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

// And into the first cache, where decoding leaves time for it: with up to so many rows.
constexpr int kNearBytes = 1536, kNearRows = 4;

template <int kLines, _mm_hint kHint = _MM_HINT_T1>
inline void prefetch(const char* p) {
#pragma GCC unroll 8
  for (int i = 0; i < kLines; ++i) _mm_prefetch(p + i * kLineBytes, kHint);
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

// Two neighbouring k of bf16 numbers, as they lie in a panel.
using Pairs = IntVec[kPanelVecs];

inline void load_pairs(const bf16* b, Pairs& pairs) {
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVecs; ++v) pairs[v] = load_pairs(b + v * kLanes * 2);
}

// One after the other.
inline void widen_pair(const Pairs& pairs, float* wide) {
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVecs; ++v) {
    store(wide + v * kLanes, first_of_pairs(pairs[v]));
    store(wide + kPanel + v * kLanes, second_of_pairs(pairs[v]));
  }
}

template <int kRows>
inline void multiply_pair(Vec (&acc)[kRows][kPanelVecs], const float* a, ptrdiff_t stride,
                          const Pairs& pairs) {
  Vec first[kPanelVecs], second[kPanelVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVecs; ++v) {
    first[v] = first_of_pairs(pairs[v]);
    second[v] = second_of_pairs(pairs[v]);
  }
  multiply_add<kRows>(acc, a, stride, first);
  multiply_add<kRows>(acc, a + 1, stride, second);
}

#if SHOAL_BF16_DOT
template <int kRows>
inline void multiply_pair(Vec (&acc)[kRows][kPanelVecs], const bf16* a, ptrdiff_t stride,
                          const Pairs& pairs) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    int pair;
    std::memcpy(&pair, a + r * stride, sizeof pair);
    const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) {
      acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, (__m512bh)pairs[v]);
    }
  }
}
#endif

// Where a product is in a panel; kGroup numbers of depth are read at once. Panels differ in nothing
// else.
template <class W>
struct PlainPanel {
  static constexpr int kGroup = 2, kStepBytes = kDepth * kPanel * sizeof(W);
  static constexpr bool kIsCoded = false;
  const W* at;
  void advance(int depth) { at += ptrdiff_t{depth} * kPanel; }
};

struct CodedPanel {
  static constexpr int kGroup = kQuad, kStepBytes = kDepth / kQuad * kQuadBytes;
  static constexpr bool kIsCoded = true;
  const uint8_t* at;
  IntVec table;
  void advance(int depth) { at += ptrdiff_t{depth} / kQuad * kQuadBytes; }
};

template <int kRows>
inline void multiply_group(Vec (&acc)[kRows][kPanelVecs], const float* a, ptrdiff_t stride,
                           const PlainPanel<float>& b, int k) {
  multiply_pair<kRows>(acc, a + k, stride, b.at + k * kPanel);
}

template <int kRows, class X>
inline void multiply_group(Vec (&acc)[kRows][kPanelVecs], const X* a, ptrdiff_t stride,
                           const PlainPanel<bf16>& b, int k) {
  Pairs pairs;
  load_pairs(b.at + k * kPanel, pairs);
  multiply_pair<kRows>(acc, a + k, stride, pairs);
}

template <int kRows, class X>
inline void multiply_group(Vec (&acc)[kRows][kPanelVecs], const X* a, ptrdiff_t stride,
                           const CodedPanel& b, int k) {
  const uint8_t* quad = b.at + k / kQuad * kQuadBytes;
  Pairs pairs;
  decode_pair<false>(quad, b.table, pairs);
  multiply_pair<kRows>(acc, a + k, stride, pairs);
  decode_pair<true>(quad, b.table, pairs);
  multiply_pair<kRows>(acc, a + k + 2, stride, pairs);
}

inline void widen_group(const PlainPanel<bf16>& b, int k, float* wide) {
  Pairs pairs;
  load_pairs(b.at + k * kPanel, pairs);
  widen_pair(pairs, wide);
}

inline void widen_group(const CodedPanel& b, int k, float* wide) {
  const uint8_t* quad = b.at + k / kQuad * kQuadBytes;
  Pairs pairs;
  decode_pair<false>(quad, b.table, pairs);
  widen_pair(pairs, wide);
  decode_pair<true>(quad, b.table, pairs);
  widen_pair(pairs, wide + 2 * kPanel);
}

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
template <int kRows, int kShare, class X, class P>
inline void multiply(const X* a, ptrdiff_t stride, P b, int depth, const char* ahead,
                     float* sums) {
  constexpr int kLines = (P::kStepBytes / kLineBytes + kShare - 1) / kShare;
  Vec acc[kRows][kPanelVecs];
  zero_sums<kRows>(acc);
  for (int k = 0; k < depth; k += kDepth) {
    prefetch<kLines>(ahead);
    ahead += kLines * kLineBytes;
    if constexpr (P::kIsCoded && kRows <= kNearRows) {
      const char* near = reinterpret_cast<const char*>(b.at) + kNearBytes;
      prefetch<P::kStepBytes / kLineBytes, _MM_HINT_T0>(near);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kDepth; i += P::kGroup) multiply_group<kRows>(acc, a, stride, b, i);
    a += kDepth;
    b.advance(kDepth);
  }
  store_sums<kRows>(acc, sums);
}

// The kernel for so many rows. Not inlined: one copy serves every epilogue.
template <class X, class P, int kRows = kMaxRows>
__attribute__((noinline)) void multiply_some(int num_rows, int num_stripes, const X* a,
                                             ptrdiff_t stride, const P& b, int depth,
                                             const char* ahead, float* sums) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) {
      return multiply_some<X, P, kRows - 1>(num_rows, num_stripes, a, stride, b, depth, ahead,
                                            sums);
    }
  }
  if (num_stripes == 1) return multiply<kRows, 1>(a, stride, b, depth, ahead, sums);
  if constexpr (2 * kRows >= kMaxRows) {  // no shorter ones come of an even cut
    if (num_stripes == 2) return multiply<kRows, 2>(a, stride, b, depth, ahead, sums);
    return multiply<kRows, 4>(a, stride, b, depth, ahead, sums);
  }
}

// To the sums of some rows, what the panel's numbers do not hold.
template <class X>
inline void add_strays(const PanelCode& code, const Stray* strays, const X* a, ptrdiff_t stride,
                       int num_rows, float* sums) {
  const float stand_in = to_float(code.stand_in());
  const Stray* s = strays + code.first_stray;
  for (const Stray* end = s + code.num_strays; s < end; ++s) {
    const float value = to_float(s->value) - stand_in;
    for (int r = 0; r < num_rows; ++r) {
      float& sum = sums[r * kPanel + s->column];
      sum = std::fma(to_float(a[r * stride + s->k]), value, sum);
    }
  }
}

// Widened numbers of this depth stay in the first cache beside the rows that they meet.
constexpr int kChunkDepth = 144;

// Part of a panel's depth, widened once for many rows.
struct WideChunk {
  float* columns;  // [depth][kPanel]
  int depth;
  bool is_first;    // else the sums go on
  int lines_ahead;  // to be fetched for every kDepth of the depth
};

template <class P>
inline void widen_chunk(P b, const WideChunk& chunk) {
  float* wide = chunk.columns;
  for (int k = 0; k < chunk.depth; k += kDepth, wide += kDepth * kPanel, b.advance(kDepth)) {
#pragma GCC unroll 4
    for (int i = 0; i < kDepth; i += P::kGroup) widen_group(b, i, wide + i * kPanel);
  }
}

// The products of a stripe with a chunk.
template <int kRows>
inline void multiply_chunk(const float* a, ptrdiff_t stride, const WideChunk& chunk,
                           const char* ahead, float* sums) {
  Vec acc[kRows][kPanelVecs];
  if (chunk.is_first) {
    zero_sums<kRows>(acc);
  } else {
    load_sums<kRows>(sums, acc);
  }
  PlainPanel<float> wide{chunk.columns};
  for (int k = 0; k < chunk.depth; k += kDepth) {
    for (int i = 0; i < chunk.lines_ahead; ++i, ahead += kLineBytes) prefetch<1>(ahead);
#pragma GCC unroll 4
    for (int i = 0; i < kDepth; i += 2) multiply_group<kRows>(acc, a, stride, wide, i);
    a += kDepth;
    wide.advance(kDepth);
  }
  store_sums<kRows>(acc, sums);
}

// The kernel for so many rows.
template <int kRows = kMaxRows>
__attribute__((noinline)) void multiply_chunk_some(int num_rows, const float* a, ptrdiff_t stride,
                                                   const WideChunk& chunk, const char* ahead,
                                                   float* sums) {
  if constexpr (2 * kRows > kMaxRows + 1) {  // no shorter ones come of an even cut
    if (num_rows < kRows) {
      return multiply_chunk_some<kRows - 1>(num_rows, a, stride, chunk, ahead, sums);
    }
  }
  multiply_chunk<kRows>(a, stride, chunk, ahead, sums);
}

}  // namespace detail

}  // namespace shoal
