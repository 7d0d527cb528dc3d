// Paged attention alone, for layers whose other parts torch computes.
//
// Python keeps one object for each kind of attention: its plan is built once a step and group of
// layers, and every layer of both then runs it.
#include "abi.h"
#include "attention.h"
#include "buffer.h"
#include "model.h"

using namespace shoal;

namespace {

class PagedAttention {
 public:
  explicit PagedAttention(Team& team) : team_(team), scratch_(team.size()) {}

  void begin_step(const KindTerms& kind, const StepTerms& step) {
    plan_.build({kind.num_heads, kind.num_kv_heads, kind.head_dim, kind.block_size, kind.window},
                {step.num_sequences, step.query_lens, step.context_lens, step.table_width},
                {step.groups[0].block_tables}, team_.size());
    const size_t num_bytes = AttentionScratch::num_bytes(plan_);
    for (auto& memory : scratch_) memory.reserve(num_bytes);
  }

  template <class T>
  void run(const LayerAttention& a) {
    const AttentionTerms terms{a.scale, a.soft_cap, a.alibi_slopes, a.sinks};
    const AttentionTensors<T, T> tensors{a.q,
                                         a.q_stride,
                                         static_cast<const T*>(a.k_cache),
                                         static_cast<const T*>(a.v_cache),
                                         static_cast<T*>(a.out),
                                         a.out_stride,
                                         a.block_tables};
    team_.run([&](Member& m) {
      AttentionWorker<T, T> worker(plan_, terms, tensors, scratch_[m.index].reserve(0));
      m.begin(plan_.num_tasks());
      for (int task; (task = m.next()) >= 0;) worker.run(task);
    });
  }

 private:
  Team& team_;
  AttentionPlan plan_;
  std::vector<Buffer<char>> scratch_;  // one for each member
};

}  // namespace

// The team must outlive it. Null when memory cannot be had.
SHOAL_API void* shoal_attention_create(void* team) {
  try {
    return new PagedAttention(*static_cast<Team*>(team));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

SHOAL_API void shoal_attention_destroy(void* attention) {
  delete static_cast<PagedAttention*>(attention);
}

// For layers of one group: of `step` only the sequences and the first group's block tables count.
// Whether there was memory for it.
SHOAL_API int shoal_attention_begin(void* attention, const KindTerms* kind,
                                    const StepTerms* step) {
  try {
    static_cast<PagedAttention*>(attention)->begin_step(*kind, *step);
    return 1;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

SHOAL_API void shoal_attention_run(void* attention, const LayerAttention* layer) {
  PagedAttention& paged = *static_cast<PagedAttention*>(attention);
  layer->dtype == kBFloat16 ? paged.run<bf16>(*layer) : paged.run<float>(*layer);
}
