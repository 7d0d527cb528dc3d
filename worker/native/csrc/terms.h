// What a layer's row work is made of, as plain data that Python writes (`structs.py`).
//
// Weights of norms are fp32 and include the family's offset; pointers belong to Python.
#pragma once

#include <cstdint>

namespace shoal {

enum NormKind : int32_t { kNoNorm = 0, kRMSNorm = 1, kLayerNorm = 2 };

// A norm over a row; kNoNorm copies it.
struct NormTerms {
  const float* weight;  // [size], or null: ones
  const float* bias;    // [size], or null: none
  int32_t kind;
  float eps;
};

enum ActivationKind : int32_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3 };

// What queries and keys are normed over: each head, or all heads of a token together.
enum NormSpan : int32_t { kHead = 0, kWidth = 1 };

// From a row of the fused product (query heads, key heads, value heads) to queries and cache.
struct QKVTerms {
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t norm_kind, norm_span;
  int32_t has_head_weights;  // weights and biases [heads, head_dim], else [head_dim] for all heads
  float norm_eps;
  float clip;  // of all three, before the norm; 0: none
  const float *q_weight, *k_weight;  // or null
  const float *q_bias, *k_bias;      // or null
  const float *cos, *sin;  // [positions, rotary_dim / 2]; null: no rotation
  int32_t rotary_dim;      // leading numbers of a head that are rotated
  int32_t is_interleaved;  // neighbours form pairs, not those rotary_dim / 2 apart
};

}  // namespace shoal
