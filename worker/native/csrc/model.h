// A decoder and a step of it as plain data, as `worker/native/structs.py` writes them.
//
// Pointers belong to Python, which keeps what they point to alive. Mirrored there field by field.
#pragma once

#include <cstdint>

#include "terms.h"

namespace shoal {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// A packed weight (gemm.h); data null: this part of the model is not computed here.
struct MatrixTerms {
  const void* data;
  const float* bias;
  const void* codes;   // of bf12.h, one of each panel; null: the numbers are as they are
  const void* strays;
  int32_t num_panels;
  int32_t depth;
};

enum LayerOrder : int32_t {
  kInTurn = 0,    // x += attention(norm(x)), x += mlp(norm(x)); norms also of what is added
  kParallel = 1,  // x += attention(norm(x)) + mlp(norm'(x))
  kSumNorm = 2,   // x = norm(x + attention(x)), x = norm(x + mlp(x))
};

// A mixture of experts in place of an MLP; see worker/layers/moe_spec.py.
struct MoETerms {
  MatrixTerms router;        // fp32
  const float* choice_bias;  // [num_experts] or null
  const MatrixTerms* up;     // [num_own], gated pairs
  const MatrixTerms* down;   // [num_own]
  MatrixTerms shared_up, shared_down;  // of the expert that all tokens have; data null: none
  const float* shared_gate;            // [hidden] or null
  int32_t router_size;                 // numbers of a row that it reads: the hidden size
  int32_t num_experts;
  int32_t first_expert, num_own;  // those computed here
  int32_t top_k;
  int32_t renormalize, is_sigmoid;
  int32_t num_groups, top_groups, best_of_group;
  float weight_scale;
  float swiglu_alpha, swiglu_limit;  // limit 0: the layer's activation
};

struct LayerTerms {
  int32_t order;
  int32_t has_own_mlp_norm;  // kParallel: else the MLP reads what attention reads
  float residual_multiplier;
  int32_t kind;  // of attention: index into the model's
  NormTerms attention_norm, attention_out_norm, mlp_norm, mlp_out_norm;
  MatrixTerms qkv, output, up, down;
  QKVTerms heads;
  float attention_scale, attention_soft_cap;
  const float* alibi_slopes;
  const float* sinks;
  int32_t activation;
  int32_t is_gated;
  const MoETerms* moe;  // in place of up and down, or null
};

// What attention of some layers has in common: they share a plan.
struct KindTerms {
  int32_t num_heads, num_kv_heads, head_dim, block_size, window;
};

struct ModelTerms {
  int32_t dtype;
  int32_t hidden_size;
  int32_t num_layers, num_kinds;
  const LayerTerms* layers;
  const KindTerms* kinds;
  // The embedding: rows of this rank, packed (a tied head's) or plain; others are zeros.
  MatrixTerms packed_embedding;
  const void* embedding;
  int64_t first_token_id, num_token_ids;
  float embedding_multiplier;
  const void* positions;  // [.., hidden], the first position's row first; null: none
  NormTerms embedding_norm, final_norm;
  MatrixTerms head;
  float logit_multiplier, logit_soft_cap;  // 1 and 0: none
};

// One layer's attention by itself.
struct LayerAttention {
  int32_t dtype;  // of cache and result
  float scale, soft_cap;
  const float* alibi_slopes;
  const float* sinks;
  const float* q;
  int64_t q_stride;
  const void* k_cache;
  const void* v_cache;
  void* out;
  int64_t out_stride;
  const int32_t* block_tables;  // [R, table_width]
};

struct LayerCache {
  void* k;
  void* v;
  int32_t group;  // whose blocks hold the layer's tokens: index into a step's
};

// Where the tokens of a group of layers are.
struct GroupTerms {
  const int64_t* slots;         // [T]: block * block_size + offset
  const int32_t* block_tables;  // [R, table_width]
};

struct StepTerms {
  const int64_t* token_ids;  // [T]
  const int64_t* positions;  // [T]
  const GroupTerms* groups;
  const int32_t* query_lens;    // [R]
  const int32_t* context_lens;  // [R]
  int32_t num_tokens, num_sequences, table_width;
};

}  // namespace shoal
