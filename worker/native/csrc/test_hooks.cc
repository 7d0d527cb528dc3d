// The kernels one by one, over raw pointers: for tests and benchmarks only.
//
// Compiled into the library beside the program, called through ctypes. `is_bf16` says what the void
// pointers point to: bf16 numbers, else fp32.
#include <chrono>

#include "abi.h"
#include "attention.h"
#include "rows.h"
#include "team.h"

using namespace shoal;

// One layer's attention over a whole step.
struct ShoalTestAttention {
  int32_t is_bf16, num_threads, num_repeats;
  int32_t num_heads, num_kv_heads, head_dim, block_size, window;
  int32_t num_sequences, table_width;
  const int32_t* query_lens;
  const int32_t* context_lens;
  const int32_t* block_tables;
  const float* q;
  int64_t q_stride;
  const void* k_cache;
  const void* v_cache;
  void* out;  // of the cache's type
  int64_t out_stride;
  float scale, soft_cap;
  const float* alibi_slopes;
  const float* sinks;
};

namespace {

double seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

using Scratch = std::vector<std::unique_ptr<char[]>>;

template <class T>
void attend(const ShoalTestAttention& a, const AttentionPlan& plan, Team& team, Scratch& scratch) {
  const AttentionTerms terms{a.scale, a.soft_cap, a.alibi_slopes, a.sinks};
  const AttentionTensors<T, T> tensors{a.q,
                                       a.q_stride,
                                       static_cast<const T*>(a.k_cache),
                                       static_cast<const T*>(a.v_cache),
                                       static_cast<T*>(a.out),
                                       a.out_stride,
                                       a.block_tables};
  team.run([&](Member& member) {
    AttentionWorker<T, T> worker(plan, terms, tensors, scratch[member.index].get());
    member.begin(plan.num_tasks());
    for (int task; (task = member.next()) >= 0;) worker.run(task);
  });
}

// f(is_bf16 ? bf16 : float), as a null pointer of that type.
template <class F>
void with_type(int is_bf16, F&& f) {
  is_bf16 ? f(static_cast<bf16*>(nullptr)) : f(static_cast<float*>(nullptr));
}

void build(const ShoalTestAttention& a, const std::vector<const int32_t*>& tables,
           AttentionPlan& plan) {
  plan.build({a.num_heads, a.num_kv_heads, a.head_dim, a.block_size, a.window},
             {a.num_sequences, a.query_lens, a.context_lens, a.table_width}, tables,
             a.num_threads);
}

}  // namespace

// Into how many units a step's attention is cut. other_tables: of another group of layers, or null.
SHOAL_API int shoal_test_attention_units(const ShoalTestAttention* args,
                                         const int32_t* other_tables) {
  AttentionPlan plan;
  std::vector<const int32_t*> tables{args->block_tables};
  if (other_tables != nullptr) tables.push_back(other_tables);
  build(*args, tables, plan);
  return plan.num_tasks();
}

// Returns the fastest repetition's seconds.
SHOAL_API double shoal_test_attention(const ShoalTestAttention* args) {
  const ShoalTestAttention& a = *args;
  Team team(a.num_threads);
  AttentionPlan plan;
  build(a, {a.block_tables}, plan);
  Scratch scratch(a.num_threads);
  const size_t num_bytes = AttentionScratch::num_bytes(plan);
  for (auto& memory : scratch) memory.reset(new char[num_bytes]());
  double fastest = 1e30;
  for (int i = 0; i < a.num_repeats; ++i) {
    const double start = seconds();
    with_type(a.is_bf16, [&](auto* type) {
      attend<std::remove_pointer_t<decltype(type)>>(a, plan, team, scratch);
    });
    fastest = std::min(fastest, seconds() - start);
  }
  return fastest;
}

// function: 0 exp, 1 exp2, 2 tanh, 3 sigmoid, 4 normal_cdf, 5 exp2_to_one, 6 and on: activations.
SHOAL_API void shoal_test_function(int function, const float* x, int n, float* y) {
  const auto apply = [&](auto f) {
    for_lanes(n, [&](int i, int count) { store_first(y + i, f(load_some(x + i, count)), count); });
  };
  switch (function) {
    case 0: return apply([](Vec v) { return exp(v); });
    case 1: return apply([](Vec v) { return exp2(v); });
    case 2: return apply([](Vec v) { return tanh(v); });
    case 3: return apply([](Vec v) { return sigmoid(v); });
    case 4: return apply([](Vec v) { return normal_cdf(v); });
    case 5: return apply([](Vec v) { return exp2_to_one(v); });
    default: return with_activation(function - 6, apply);
  }
}

// y: [n] of either type.
SHOAL_API void shoal_test_norm(const NormTerms* norm, const float* x, int n, int is_bf16, void* y) {
  with_type(is_bf16, [&](auto* type) { norm_row(*norm, x, n, static_cast<decltype(type)>(y)); });
}

// rows: [num_tokens, stride] of the fused product; q: [num_tokens, num_heads * head_dim].
SHOAL_API void shoal_test_prepare(const QKVTerms* terms, const float* rows, int stride,
                                  int num_tokens, const int64_t* positions, const int64_t* slots,
                                  float* q, int is_bf16, void* k_cache, void* v_cache) {
  with_type(is_bf16, [&](auto* type) {
    using Numbers = decltype(type);
    for (int t = 0; t < num_tokens; ++t) {
      prepare_token(*terms, rows + static_cast<ptrdiff_t>(t) * stride, positions[t], slots[t],
                    q + static_cast<ptrdiff_t>(t) * terms->num_heads * terms->head_dim,
                    static_cast<Numbers>(k_cache), static_cast<Numbers>(v_cache));
    }
  });
}

SHOAL_API void shoal_test_add(const float* y, float multiplier, int n, float* x) {
  add_row(y, multiplier, n, x);
}
