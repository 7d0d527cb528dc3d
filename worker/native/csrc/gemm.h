// Matrix products with weights packed once: y = x W^T for one row to thousands.
//
// Owns the packed layout and how a product is cut into tasks; the innermost loops are
// microkernel.h's, and what happens to a finished tile is the caller's (`Epilogue`). A weight [N, K]
// becomes panels of 32 of its rows, the product's columns, each read as one sequential stream:
//
//     fp32  [N / 32][K][32]          bf16  [N / 32][K / 2][32][2]     (N, K padded with zeros)
//
// or, of bf16, in the twelve bits of bf12.h, so that one copy serves single rows, at the speed
// memory is read, and prompts. Every result is summed over k in ascending order (strays last),
// whatever the number of rows: it does not depend on the batch.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "microkernel.h"
#include "team.h"

namespace shoal {

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
  const void* data = nullptr;
  const float* bias = nullptr;  // padded and ordered as the columns, or null
  int num_panels = 0;
  int depth = 0;  // K, padded
  const PanelCode* codes = nullptr;  // of each panel, if its numbers are kept as bf12.h has them
  const Stray* strays = nullptr;
  const W* panel(int p) const {
    return static_cast<const W*>(data) + static_cast<ptrdiff_t>(p) * depth * kPanel;
  }
  const uint8_t* coded_panel(int p) const {
    const ptrdiff_t num_quads = static_cast<ptrdiff_t>(p) * depth / kQuad;
    return static_cast<const uint8_t*>(data) + num_quads * kQuadBytes;
  }
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

namespace detail {

constexpr int kMaxStripes = 16;

inline int rows_in_cache(int row_bytes) {
  static const long l2_bytes = std::max(sysconf(_SC_LEVEL2_CACHE_SIZE), 512L << 10);
  const int fitting = static_cast<int>(l2_bytes / 2 / row_bytes);
  return std::clamp(fitting / kMaxRows, 2, kMaxStripes) * kMaxRows;
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

// The rows of one task in nearly even stripes of up to kMaxRows.
struct Stripes {
  int begin, num_rows, count;
  int first(int i) const { return begin + num_rows * i / count; }
  int size(int i) const { return first(i + 1) - first(i); }
};

namespace detail {

// A weight as the kernels read it.
template <class W>
struct PlainWeight {
  const Packed<W>& weight;
  PlainPanel<W> panel(int p) const { return {weight.panel(p)}; }
  template <class X>
  void finish(const Rows<X>&, const Tile&, float*) const {}
};

struct CodedWeight {
  const Packed<bf16>& weight;
  CodedPanel panel(int p) const { return {weight.coded_panel(p), table_of(weight.codes[p])}; }
  // After all of the depth, so that a row's sum does not depend on how it was cut.
  template <class X>
  void finish(const Rows<X>& x, const Tile& t, float* sums) const {
    add_strays(weight.codes[t.panel], weight.strays, x.row(t.first_row), x.stride, t.num_rows,
               sums);
  }
};

template <class P>
const char* first_byte(const P& panel) {
  return reinterpret_cast<const char*>(panel.at);
}

// All stripes by a panel in one piece.
template <class X, class Weight, class Epilogue>
void multiply_whole(const Stripes& stripes, int panel, const Rows<X>& x, const Weight& w,
                    Epilogue&& epilogue) {
  alignas(64) float sums[kMaxRows * kPanel];
  const auto b = w.panel(panel);
  const int depth = w.weight.depth;
  const ptrdiff_t panel_bytes = ptrdiff_t{depth} / kDepth * b.kStepBytes;
  const char* ahead = first_byte(b) + (stripes.count == 1 ? kAheadBytes : panel_bytes);
  const ptrdiff_t share = panel_bytes / (stripes.count > 2 ? 4 : stripes.count);  // as kShare
  for (int i = 0; i < stripes.count; ++i) {
    const int first = stripes.first(i), size = stripes.size(i);
    multiply_some(size, stripes.count, x.row(first), x.stride, b, depth, ahead + (i & 3) * share,
                  sums);
    const Tile tile{first, size, panel, sums};
    w.finish(x, tile, sums);
    epilogue(tile);
  }
}

// The same where numbers have to be widened: a chunk of the panel meets all stripes before the
// next, so that it is widened once and stays in the first cache. Each stripe is handed on as soon
// as it is done; its stores then run beside the next one's products.
template <class Weight, class Epilogue>
void multiply_widened(const Stripes& stripes, int panel, const Rows<float>& x, const Weight& w,
                      Epilogue&& epilogue) {
  alignas(64) float columns[kChunkDepth * kPanel];
  alignas(64) float sums[kMaxStripes * kMaxRows * kPanel];
  auto b = w.panel(panel);
  const int whole_depth = w.weight.depth;
  const int num_chunks = (whole_depth + kChunkDepth - 1) / kChunkDepth;
  const int chunk_depth = (whole_depth / kDepth + num_chunks - 1) / num_chunks * kDepth;
  const int lines_ahead = (b.kStepBytes / kLineBytes + stripes.count - 1) / stripes.count;
  const char* ahead = first_byte(b) + ptrdiff_t{whole_depth} / kDepth * b.kStepBytes;
  for (int k = 0; k < whole_depth; k += chunk_depth) {
    const int depth = std::min(chunk_depth, whole_depth - k);
    const WideChunk chunk{columns, depth, k == 0, lines_ahead};
    widen_chunk(b, chunk);
    for (int i = 0; i < stripes.count; ++i) {
      const int first = stripes.first(i), size = stripes.size(i);
      float* own = sums + (first - stripes.begin) * kPanel;
      multiply_chunk_some(size, x.row(first) + k, x.stride, chunk, ahead, own);
      ahead += depth / kDepth * lines_ahead * kLineBytes;
      if (k + depth < whole_depth) continue;
      const Tile tile{first, size, panel, own};
      w.finish(x, tile, own);
      epilogue(tile);
    }
    b.advance(depth);
  }
}

template <class X, class Weight, class Epilogue>
void multiply_stripes(const Stripes& stripes, int panel, const Rows<X>& x, const Weight& w,
                      Epilogue&& epilogue) {
  using P = decltype(w.panel(0));
  if constexpr (std::is_same_v<X, float> && !std::is_same_v<P, PlainPanel<float>>) {
    if (stripes.count > 2) return multiply_widened(stripes, panel, x, w, epilogue);  // else dearer
  }
  multiply_whole(stripes, panel, x, w, epilogue);
}

}  // namespace detail

// Computes one task of a cut, tile by tile. epilogue(const Tile&).
template <class X, class W, class Epilogue>
void run_task(const Cut& c, int task, const Rows<X>& x, const Packed<W>& weight,
              Epilogue&& epilogue) {
  const int panel = task % c.num_panels, begin = task / c.num_panels * c.block_rows;
  const int num_rows = std::min(c.num_rows - begin, c.block_rows);
  const Stripes stripes{begin, num_rows, (num_rows + kMaxRows - 1) / kMaxRows};
  if constexpr (std::is_same_v<W, bf16>) {
    if (weight.codes != nullptr) {
      return detail::multiply_stripes(stripes, panel, x, detail::CodedWeight{weight}, epilogue);
    }
  }
  detail::multiply_stripes(stripes, panel, x, detail::PlainWeight<W>{weight}, epilogue);
}

// One phase: all members call it alike. rows() gives a member the product's rows; it is called with a
// task at hand, which may turn out to be another's: it must change nothing that others see.
template <class W, class GetRows, class Epilogue>
void multiply_rows(Member& member, GetRows&& rows, int num_rows, const Packed<W>& weight,
                   Epilogue&& epilogue) {
  decltype(rows()) x;
  const Cut c = cut<std::remove_pointer_t<decltype(x.data)>>(num_rows, weight);
  member.begin(c.num_tasks());
  for (int task; (task = member.next_shared()) >= 0;) {
    if (x.data == nullptr) x = rows();
    run_task(c, task, x, weight, [&](const Tile& tile) {
      if (member.claim()) epilogue(tile);
    });
  }
}

template <class X, class W, class Epilogue>
void multiply(Member& member, const Rows<X>& x, int num_rows, const Packed<W>& weight,
              Epilogue&& epilogue) {
  multiply_rows(member, [&] { return x; }, num_rows, weight, epilogue);
}

}  // namespace shoal
