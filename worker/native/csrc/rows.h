// What happens to one row, a token's, between products: norms, rotation, the cache's new entries.
//
// Everything is computed in fp32. From the fused product of queries, keys and values to queries
// and cache a token is passed over once: clipped, normed, rotated (RoFormer, Su et al. 2021) and
// written, head by head. Called by program.h, on any thread; knows nothing of sequences.
#pragma once

#include <cstddef>

#include "terms.h"
#include "vec.h"

namespace shoal {

constexpr int kMaxHeadDim = 1024;

// body(first, count) for a row's vectors; count < kLanes for the last one of some rows.
template <class Body>
inline void for_lanes(int n, Body&& body) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, n - i);
}

template <class T>
inline Vec load_some(const T* p, int n) {
  return n == kLanes ? load(p) : load(p, n);
}
template <class T>
inline void store_first(T* p, Vec x, int n) {
  n == kLanes ? store(p, x) : store(p, x, n);
}

struct Moments {
  float mean = 0.0f;  // 0 for RMS norms
  float scale = 1.0f;  // 1 / sqrt(variance + eps), or of the mean square
};

// Of a row within [-clip, clip]; clip: infinity for none. Two passes, since the difference of two
// great sums would lose the variance.
inline Moments moments(int32_t kind, const float* x, int n, float clip, float eps) {
  const Vec high = splat(clip), low = splat(-clip);
  const auto clipped = [&](int i, int count) {
    return max(low, min(high, load_some(x + i, count)));
  };
  Moments m;
  if (kind == kLayerNorm) {
    Vec sum = zero();
    for_lanes(n, [&](int i, int count) { sum = sum + clipped(i, count); });
    m.mean = reduce_add(sum) / static_cast<float>(n);
  }
  const Vec mean = splat(m.mean);
  Vec squares = zero();
  for_lanes(n, [&](int i, int count) {
    Vec v = clipped(i, count) - mean;
    if (count < kLanes) {
      v = select(less(lane_numbers(), splat(static_cast<float>(count))), v, zero());
    }
    squares = fma(v, v, squares);
  });
  m.scale = 1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(n) + eps);
  return m;
}

// y = norm(x), both [n]; Out: float or bf16. x and y may be the same.
template <class Out>
void norm_row(const NormTerms& norm, const float* x, int n, Out* y) {
  if (norm.kind == kNoNorm) {
    for_lanes(n, [&](int i, int count) { store_first(y + i, load_some(x + i, count), count); });
    return;
  }
  const Moments m = moments(norm.kind, x, n, __builtin_inff(), norm.eps);
  const Vec mean = splat(m.mean), scale = splat(m.scale);
  for_lanes(n, [&](int i, int count) {
    Vec v = (load_some(x + i, count) - mean) * scale;
    if (norm.weight != nullptr) v = v * load_some(norm.weight + i, count);
    if (norm.bias != nullptr) v = v + load_some(norm.bias + i, count);
    store_first(y + i, v, count);
  });
}

// x += multiplier * y
inline void add_row(const float* y, float multiplier, int n, float* x) {
  const Vec factor = splat(multiplier);
  for_lanes(n, [&](int i, int count) {
    store_first(x + i, fma(factor, load_some(y + i, count), load_some(x + i, count)), count);
  });
}

// Rotates x[dim] by the angles whose cosines and sines are given, [dim / 2]: halves form pairs.
inline void rotate_halves(float* x, int dim, const float* cos, const float* sin) {
  const int half = dim / 2;
  for_lanes(half, [&](int i, int count) {
    const Vec c = load_some(cos + i, count), s = load_some(sin + i, count);
    const Vec a = load_some(x + i, count), b = load_some(x + half + i, count);
    store_first(x + i, a * c - b * s, count);
    store_first(x + half + i, fma(b, c, a * s), count);
  });
}

// As above, where neighbours form pairs.
inline void rotate_neighbours(float* x, int dim, const float* cos, const float* sin) {
  for_lanes(dim, [&](int i, int count) {
    const Vec c = double_lanes(load(cos + i / 2, count / 2));
    const Vec s = negate_even(double_lanes(load(sin + i / 2, count / 2)));
    const Vec v = load_some(x + i, count);
    store_first(x + i, fma(swap_pairs(v), s, v * c), count);
  });
}

namespace detail {

// The heads of a token that are normed alike: its queries, or its keys.
struct Heads {
  const float* x;  // [num_heads, head_dim]
  int num_heads;
  const float* weight;
  const float* bias;
};

inline void rotate_head(const QKVTerms& t, int64_t position, float* x) {
  if (t.cos == nullptr) return;
  const int64_t row = position * (t.rotary_dim / 2);
  if (t.is_interleaved) {
    rotate_neighbours(x, t.rotary_dim, t.cos + row, t.sin + row);
  } else {
    rotate_halves(x, t.rotary_dim, t.cos + row, t.sin + row);
  }
}

// Calls keep(head, y) with each head's finished numbers; y: where `place(head)` wants them.
template <class Place, class Keep>
void finish_heads(const QKVTerms& t, const Heads& heads, int64_t position, Place&& place,
                  Keep&& keep) {
  const int dim = t.head_dim;
  const float clip = t.clip > 0.0f ? t.clip : __builtin_inff();
  Moments m;
  if (t.norm_kind != kNoNorm && t.norm_span == kWidth) {
    m = moments(t.norm_kind, heads.x, heads.num_heads * dim, clip, t.norm_eps);
  }
  for (int h = 0; h < heads.num_heads; ++h) {
    const float* x = heads.x + static_cast<ptrdiff_t>(h) * dim;
    if (t.norm_kind != kNoNorm && t.norm_span == kHead) {
      m = moments(t.norm_kind, x, dim, clip, t.norm_eps);
    }
    const ptrdiff_t first = t.has_head_weights ? static_cast<ptrdiff_t>(h) * dim : 0;
    float* y = place(h);
    for_lanes(dim, [&](int i, int count) {
      Vec v = max(splat(-clip), min(splat(clip), load_some(x + i, count)));
      if (t.norm_kind != kNoNorm) v = (v - splat(m.mean)) * splat(m.scale);
      if (heads.weight != nullptr) v = v * load_some(heads.weight + first + i, count);
      if (heads.bias != nullptr) v = v + load_some(heads.bias + first + i, count);
      store_first(y + i, v, count);
    });
    rotate_head(t, position, y);
    keep(h, y);
  }
}

template <class W>
void write_head(const float* x, int dim, float clip, W* y) {
  for_lanes(dim, [&](int i, int count) {
    Vec v = load_some(x + i, count);
    if (clip > 0.0f) v = max(splat(-clip), min(splat(clip), v));
    store_first(y + i, v, count);
  });
}

}  // namespace detail

// A token's row of the fused product, [num_heads + 2 num_kv_heads, head_dim], to its finished
// queries, [num_heads, head_dim] (which may be the row's own), and its slot of the caches,
// [slots, num_kv_heads, head_dim]. Needs head_dim <= kMaxHeadDim.
template <class W>
void prepare_token(const QKVTerms& t, const float* row, int64_t position, int64_t slot, float* q,
                   W* k_cache, W* v_cache) {
  const int dim = t.head_dim;
  const ptrdiff_t num_k = static_cast<ptrdiff_t>(t.num_kv_heads) * dim;
  const float* keys = row + static_cast<ptrdiff_t>(t.num_heads) * dim;
  W* k_slot = k_cache + slot * num_k;
  W* v_slot = v_cache + slot * num_k;
  detail::finish_heads(
      t, {row, t.num_heads, t.q_weight, t.q_bias}, position,
      [&](int h) { return q + static_cast<ptrdiff_t>(h) * dim; }, [](int, const float*) {});
  alignas(64) float key[kMaxHeadDim];
  detail::finish_heads(
      t, {keys, t.num_kv_heads, t.k_weight, t.k_bias}, position, [&](int) { return key; },
      [&](int h, const float* y) {
        detail::write_head(y, dim, 0.0f, k_slot + static_cast<ptrdiff_t>(h) * dim);
      });
  detail::write_head(keys + num_k, static_cast<int>(num_k), t.clip, v_slot);
}

inline Vec silu(Vec x) { return x / (splat(1.0f) + exp(zero() - x)); }
inline Vec gelu(Vec x) { return x * normal_cdf(x); }
// x * sigmoid(2 z) = 0.5 x (1 + tanh(z)), z = sqrt(2 / pi) (x + 0.044715 x^3)
inline Vec gelu_tanh(Vec x) {
  const Vec z = fma(x * x, splat(0.044715f) * x, x) * splat(-1.5957691216f);
  return x / (splat(1.0f) + exp(z));
}
inline Vec relu(Vec x) { return max(zero(), x); }

// f(activation), where activation(Vec) is the one of that kind.
template <class F>
inline void with_activation(int32_t kind, F&& f) {
  switch (kind) {
    case kSilu: return f([](Vec x) { return silu(x); });
    case kGelu: return f([](Vec x) { return gelu(x); });
    case kGeluTanh: return f([](Vec x) { return gelu_tanh(x); });
    default: return f([](Vec x) { return relu(x); });
  }
}

}  // namespace shoal
