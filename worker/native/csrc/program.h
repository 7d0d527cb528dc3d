// All layers of a step in one call: the phases of a decoder, run by a team over shared buffers.
//
// Owns the buffers between phases and their order; the residual stream [T, stride] is the caller's,
// in fp32, as are weights and caches. With one rank a step is one call (`run_step`); with several, or
// with layers that are computed elsewhere, the caller runs the parts of a layer one by one and adds
// up between them. A phase computes rows as one row would be computed alone, so a
// sequence's numbers do not depend on the batch.
//
// Few rows (decoding) are normed and rotated by every member for itself: that costs less than one
// meeting of the members.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "attention.h"
#include "buffer.h"
#include "largest.h"
#include "matrix.h"
#include "model.h"
#include "moe.h"
#include "pack.h"
#include "phases.h"
#include "program_base.h"
#include "rows.h"
#include "team.h"

namespace shoal {

constexpr int kFewRows = 4;

template <class W>
class Program final : public ProgramBase {
  using X = Input<W>;

 public:
  Program(const ModelTerms& model, Team& team)
      : model_(model),
        team_(team),
        layers_(model.layers, model.layers + model.num_layers),
        kinds_(model.kinds, model.kinds + model.num_kinds),
        plans_(model.num_kinds),
        kind_groups_(model.num_kinds),
        mixture_(team.size()),
        largest_(team.size()),
        own_(team.size()) {
    for (const LayerTerms& l : layers_) has_mixture_ |= l.moe != nullptr;
  }

  void set_caches(const LayerCache* caches) override {
    caches_.assign(caches, caches + layers_.size());
    for (auto& groups : kind_groups_) groups.clear();
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].qkv.data != nullptr) kind_groups_[layers_[i].kind].insert(caches_[i].group);
    }
  }

  // What `step` points to must stay until its last part is computed.
  void begin_step(const StepTerms& step) override {
    step_ = step;
    const AttentionBatch batch{step.num_sequences, step.query_lens, step.context_lens,
                               step.table_width};
    size_t scratch_bytes = 0;
    for (size_t i = 0; i < kinds_.size(); ++i) {
      const KindTerms& kind = kinds_[i];
      plans_[i].build({kind.num_heads, kind.num_kv_heads, kind.head_dim, kind.block_size,
                       kind.window},
                      batch, tables_of(i), team_.size());
      scratch_bytes = std::max(scratch_bytes, AttentionScratch::num_bytes(plans_[i]));
    }
    reserve(scratch_bytes);
  }

  void look_up(Rows<float> x) override {
    run([&](Member& m) {
      for_rows(m, step_.num_tokens, [&](int r) { look_up_row(r, x.row(r)); });
    });
  }

  void finish_embedding(Rows<float> x) override {
    run([&](Member& m) {
      for_rows(m, step_.num_tokens, [&](int r) { finish_embedding_row(r, x.row(r)); });
    });
  }

  void run_layers(int first, int last, Rows<float> x) override {
    run([&](Member& m) {
      for (int i = first; i < last; ++i) run_layer(m, i, x);
    });
  }

  void attention_part(int layer, Rows<float> x, Rows<float> y) override {
    run([&](Member& m) { attend(m, layer, x, Target{y}); });
  }

  // Of layers in parallel the result is added to y, which holds attention's.
  void mlp_part(int layer, Rows<float> x, Rows<float> y) override {
    const bool is_added = layers_[layer].order == kParallel;
    run([&](Member& m) { run_mlp(m, layer, x, Target{y, 1.0f, is_added}); });
  }

  void add_part(int layer, bool is_attention, Rows<float> x, Rows<float> y) override {
    run([&](Member& m) { add(m, layer, is_attention, x, y); });
  }

  void logits(Rows<float> x, const Selection& selection) override {
    run([&](Member& m) { run_head(m, x, selection); });
  }

  void run_step(Rows<float> x, const Selection& selection) override {
    if (selection.largest != nullptr) largest_.start(selection.num_rows, selection.num_columns);
    run([&](Member& m) {
      for_rows(m, step_.num_tokens, [&](int r) {
        look_up_row(r, x.row(r));
        finish_embedding_row(r, x.row(r));
      });
      for (int i = 0; i < model_.num_layers; ++i) run_layer(m, i, x);
      if (selection.num_rows > 0) run_head(m, x, selection);
    });
    if (selection.largest == nullptr) return;
    for (int r = 0; r < selection.num_rows; ++r) selection.largest[r] = largest_.column(r);
  }

 private:
  // A mixture's phases depend on what was routed: all members have to be at the same.
  template <class Body>
  void run(Body&& body) {
    has_mixture_ ? team_.run(body) : team_.run_past_absent(body);
  }

  // What a member has for itself.
  struct Own {
    Buffer<X> normed;
    Buffer<float> q;
    Buffer<char> scratch;
  };

  static Packed<W> packed(const MatrixTerms& m) { return packed_as<W>(m); }

  // Where the layers of a kind have the step's tokens.
  std::vector<const int32_t*> tables_of(size_t kind) const {
    std::vector<const int32_t*> tables;
    if (step_.num_sequences == 0) return tables;  // there may be no groups then
    for (int group : kind_groups_[kind]) tables.push_back(step_.groups[group].block_tables);
    return tables;
  }

  void reserve(size_t scratch_bytes) {
    const int num_rows = step_.num_tokens;
    int depth = 0, heads = 0, projected = 0, hidden = 0, attended = 0;
    for (const LayerTerms& l : layers_) {
      depth = std::max({depth, l.qkv.depth, l.moe != nullptr ? l.moe->up[0].depth : l.up.depth});
      projected = std::max(projected, l.qkv.num_panels * kPanel);
      hidden = std::max({hidden, l.up.num_panels * kPanel / (l.is_gated ? 2 : 1), l.down.depth});
      attended = std::max(attended, l.output.depth);
      heads = std::max(heads, l.heads.num_heads * l.heads.head_dim);
    }
    normed_ = normed_buffer_.rows(num_rows, std::max(depth, model_.head.depth));
    mlp_normed_ = mlp_normed_buffer_.rows(num_rows, depth);
    qkv_ = qkv_buffer_.rows(num_rows, projected);
    attended_ = attended_buffer_.rows(num_rows, attended);
    hidden_ = hidden_buffer_.rows(num_rows, hidden);
    for (const LayerTerms& l : layers_) {
      if (l.moe != nullptr) mixture_.reserve(*l.moe, num_rows, l.moe->up[0].depth);
    }
    largest_.reserve(num_rows);
    y_ = y_buffer_.rows(num_rows, (model_.hidden_size + kPanel - 1) / kPanel * kPanel);
    for (Own& own : own_) {
      own.normed.rows(kFewRows, std::max(depth, model_.head.depth));
      own.q.rows(kFewRows, heads);
      own.scratch.reserve(scratch_bytes);
    }
  }

  void run_head(Member& m, Rows<float> x, const Selection& selection) {
    const Packed<W> head = packed(model_.head);
    const float multiplier = model_.logit_multiplier, cap = model_.logit_soft_cap;
    const auto row = [&](int i) { return x.row(selection.indices ? selection.indices[i] : i); };
    multiply_normed(m, model_.final_norm, row, selection.num_rows, head, [&](const Tile& t) {
      for_vectors(t, head.bias, [&](int i, int column, Vec y) {
        y = y * splat(multiplier);
        if (cap != 0) y = splat(cap) * tanh(y * splat(1.0f / cap));
        if (selection.largest != nullptr) return largest_.offer(m.index, i, column, y);
        store(selection.out.row(i) + column, y);
      });
    });
  }

  template <class Epilogue>
  void multiply_normed(Member& m, const NormTerms& norm, Rows<float> x, const Packed<W>& weight,
                       Epilogue&& epilogue) {
    const auto row = [&](int r) { return x.row(r); };
    multiply_normed(m, norm, row, step_.num_tokens, weight, epilogue);
  }

  // A product of normed rows; row(i): the fp32 row to norm.
  template <class Row, class Epilogue>
  void multiply_normed(Member& m, const NormTerms& norm, Row&& row, int num_rows,
                       const Packed<W>& weight, Epilogue&& epilogue) {
    const int size = model_.hidden_size;
    if (num_rows > kFewRows) {
      for_rows(m, num_rows, [&](int r) { norm_row(norm, row(r), size, normed_.row(r)); });
      return multiply(m, normed_, num_rows, weight, epilogue);
    }
    const auto norm_own = [&] {
      Rows<X> normed = own_[m.index].normed.rows(kFewRows, weight.depth);
      for (int r = 0; r < num_rows; ++r) norm_row(norm, row(r), size, normed.row(r));
      return normed;
    };
    multiply_rows(m, norm_own, num_rows, weight, epilogue);
  }

  void look_up_row(int r, float* x) {
    const int64_t row = step_.token_ids[r] - model_.first_token_id;
    const int size = model_.hidden_size;
    if (row < 0 || row >= model_.num_token_ids) {
      std::fill(x, x + size, 0.0f);
    } else if (model_.packed_embedding.data != nullptr) {
      unpack_row(packed(model_.packed_embedding), static_cast<int>(row), size, 1.0f, x);
    } else {
      const W* from = static_cast<const W*>(model_.embedding) + row * size;
      for (int i = 0; i < size; ++i) x[i] = to_float(from[i]);
    }
  }

  void finish_embedding_row(int r, float* x) {
    const int size = model_.hidden_size;
    const float multiplier = model_.embedding_multiplier;
    if (multiplier != 1.0f) {
      for (int i = 0; i < size; ++i) x[i] *= multiplier;
    }
    if (model_.positions != nullptr) {
      const W* from = static_cast<const W*>(model_.positions) + step_.positions[r] * size;
      for (int i = 0; i < size; ++i) x[i] += to_float(from[i]);
    }
    if (model_.embedding_norm.kind != kNoNorm) norm_row(model_.embedding_norm, x, size, x);
  }

  void run_layer(Member& m, int layer, Rows<float> x) {
    const LayerTerms& l = layers_[layer];
    run_part(m, layer, true, l.attention_out_norm, x);
    run_part(m, layer, false, l.mlp_out_norm, x);
  }

  void run_part(Member& m, int layer, bool is_attention, const NormTerms& out_norm,
                Rows<float> x) {
    const LayerTerms& l = layers_[layer];
    const bool is_direct = l.order == kParallel || (l.order == kInTurn && out_norm.kind == kNoNorm);
    const Target target = is_direct ? Target{x, l.residual_multiplier, true} : Target{y_};
    if (is_attention) {
      attend(m, layer, x, target);
    } else {
      run_mlp(m, layer, x, target);
    }
    if (!is_direct) add(m, layer, is_attention, x, y_);
  }

  void add(Member& m, int layer, bool is_attention, Rows<float> x, Rows<float> y) {
    const LayerTerms& l = layers_[layer];
    const int size = model_.hidden_size;
    if (l.order == kSumNorm) {
      const NormTerms& norm = is_attention ? l.attention_norm : l.mlp_norm;
      return for_rows(m, step_.num_tokens, [&](int r) {
        add_row(y.row(r), 1.0f, size, x.row(r));
        norm_row(norm, x.row(r), size, x.row(r));
      });
    }
    const NormTerms& norm = is_attention ? l.attention_out_norm : l.mlp_out_norm;
    for_rows(m, step_.num_tokens, [&](int r) {
      if (norm.kind != kNoNorm) norm_row(norm, y.row(r), size, y.row(r));
      add_row(y.row(r), l.residual_multiplier, size, x.row(r));
    });
  }

  void attend(Member& m, int layer, Rows<float> x, const Target& target) {
    const LayerTerms& l = layers_[layer];
    const Packed<W> weight = packed(l.qkv);
    const auto keep = [&](const Tile& t) {
      for_vectors(t, weight.bias,
                  [&](int row, int column, Vec y) { store(qkv_.row(row) + column, y); });
    };
    const int num_rows = step_.num_tokens, size = model_.hidden_size;
    if (l.order == kParallel) {  // x changes before the MLP reads it
      for_rows(m, num_rows, [&](int r) {
        norm_row(l.attention_norm, x.row(r), size, normed_.row(r));
        if (l.has_own_mlp_norm) norm_row(l.mlp_norm, x.row(r), size, mlp_normed_.row(r));
      });
      multiply(m, normed_, num_rows, weight, keep);
    } else {
      const NormTerms& norm = l.order == kSumNorm ? kIdentity : l.attention_norm;
      multiply_normed(m, norm, x, weight, keep);
    }
    attend_heads(m, layer);
    leave(m, attended_, packed(l.output), target);
  }

  void attend_heads(Member& m, int layer) {
    const LayerTerms& l = layers_[layer];
    const AttentionPlan& plan = plans_[l.kind];
    const int num_rows = step_.num_tokens;
    Own& own = own_[m.index];
    const bool is_prepared = num_rows > kFewRows;
    if (is_prepared) for_rows(m, num_rows, [&](int r) { prepare(layer, r, qkv_.row(r)); });
    m.begin(plan.num_tasks());
    int task = m.next();
    if (task < 0) return;
    Rows<float> q = qkv_;  // in place
    if (!is_prepared) {
      q = own.q.rows(kFewRows, l.heads.num_heads * l.heads.head_dim);
      // All members with a task write the same keys and values: none has to wait for another.
      for (int r = 0; r < num_rows; ++r) prepare(layer, r, q.row(r));
    }
    const AttentionTerms terms{l.attention_scale, l.attention_soft_cap, l.alibi_slopes, l.sinks};
    const AttentionTensors<W, X> tensors{q.data,
                                      q.stride,
                                      static_cast<const W*>(caches_[layer].k),
                                      static_cast<const W*>(caches_[layer].v),
                                      attended_.data,
                                      attended_.stride,
                                      step_.groups[caches_[layer].group].block_tables};
    AttentionWorker<W, X> worker(plan, terms, tensors, own.scratch.reserve(0));
    for (; task >= 0; task = m.next()) worker.run(task);
  }

  void prepare(int layer, int r, float* q) {
    const LayerTerms& l = layers_[layer];
    const LayerCache& cache = caches_[layer];
    prepare_token(l.heads, qkv_.row(r), step_.positions[r], step_.groups[cache.group].slots[r], q,
                  static_cast<W*>(cache.k), static_cast<W*>(cache.v));
  }

  void run_mlp(Member& m, int layer, Rows<float> x, const Target& target) {
    const LayerTerms& l = layers_[layer];
    if (l.moe != nullptr) return run_mixture(m, l, x, target);
    const Packed<W> weight = packed(l.up);
    const auto keep = [&](const Tile& t) { activate_tile(l, weight.bias, t); };
    if (l.order == kParallel) {
      multiply(m, l.has_own_mlp_norm ? mlp_normed_ : normed_, step_.num_tokens, weight, keep);
    } else {
      const NormTerms& norm = l.order == kSumNorm ? kIdentity : l.mlp_norm;
      multiply_normed(m, norm, x, weight, keep);
    }
    leave(m, hidden_, packed(l.down), target);
  }

  void run_mixture(Member& m, const LayerTerms& l, Rows<float> x, const Target& target) {
    Rows<X> input = l.has_own_mlp_norm ? mlp_normed_ : normed_;
    if (l.order != kParallel) {
      const NormTerms& norm = l.order == kSumNorm ? kIdentity : l.mlp_norm;
      const int size = model_.hidden_size;
      for_rows(m, step_.num_tokens, [&](int r) { norm_row(norm, x.row(r), size, normed_.row(r)); });
      input = normed_;
    }
    const auto keep = [&](int row, int column, Vec y) { target.leave(row, column, y); };
    mixture_.run(m, *l.moe, l.activation, input, step_.num_tokens, l.moe->up[0].depth, keep);
  }

  void activate_tile(const LayerTerms& l, const float* bias, const Tile& t) {
    with_activation(l.activation, [&](auto activation) {
      if (l.is_gated) {
        keep_gated(t, bias, activation, hidden_);
      } else {
        for_vectors(t, bias, [&](int row, int column, Vec y) {
          store(hidden_.row(row) + column, activation(y));
        });
      }
    });
  }

  // The last product of a part.
  void leave(Member& m, Rows<X> rows, const Packed<W>& weight, const Target& target) {
    multiply(m, rows, step_.num_tokens, weight, [&](const Tile& t) {
      for_vectors(t, weight.bias,
                  [&](int row, int column, Vec y) { target.leave(row, column, y); });
    });
  }

  static constexpr NormTerms kIdentity{};

  const ModelTerms model_;
  Team& team_;
  const std::vector<LayerTerms> layers_;
  const std::vector<KindTerms> kinds_;
  std::vector<AttentionPlan> plans_;  // of each kind
  std::vector<std::set<int>> kind_groups_;  // whose blocks hold the tokens of each kind's layers
  bool has_mixture_ = false;
  ExpertMixture<W> mixture_;
  LargestColumns largest_;
  std::vector<LayerCache> caches_;
  StepTerms step_{};
  std::vector<Own> own_;
  Buffer<X> normed_buffer_, mlp_normed_buffer_, attended_buffer_, hidden_buffer_;
  Buffer<float> qkv_buffer_, y_buffer_;
  Rows<X> normed_, mlp_normed_, attended_, hidden_;
  Rows<float> qkv_, y_;
};

}  // namespace shoal
