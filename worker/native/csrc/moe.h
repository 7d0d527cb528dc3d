// A mixture of experts in place of a layer's MLP, as phases of a team.
//
// Rows are routed, copied side by side for each expert, and every expert of this rank that has any
// multiplies its rows with its own packed weights; all experts' tiles are tasks of one phase. A
// token's results are summed in the order of its choices, so they do not depend on the batch. Owns
// the buffers between these phases; called by program.h, which knows where results go.
#pragma once

#include <vector>

#include "buffer.h"
#include "gemm.h"
#include "matrix.h"
#include "rows.h"
#include "routing.h"

namespace shoal {

template <class W>
class ExpertMixture {
  using X = Input<W>;

 public:
  explicit ExpertMixture(int num_members) : choosers_(num_members) {}

  // For steps of num_rows tokens in layers such as `t`. Raises: std::bad_alloc.
  void reserve(const MoETerms& t, int num_rows, int depth) {
    const int num_places = num_rows * t.top_k;
    top_k_ = t.top_k;
    wide_ = wide_buffer_.rows(num_rows, t.router.depth);
    logits_ = logits_buffer_.rows(num_rows, t.router.num_panels * kPanel);
    ids_.resize(num_places);
    weights_.resize(num_places);
    for (auto& chooser : choosers_) chooser.reserve(t);
    groups_.reserve(t.num_own, num_places);
    gathered_ = gathered_buffer_.rows(num_places, depth);
    hidden_ = hidden_buffer_.rows(num_places, t.up[0].num_panels * kPanel / 2);
    results_ = results_buffer_.rows(num_places, t.down[0].num_panels * kPanel);
    if (t.shared_up.data == nullptr) return;
    shared_hidden_ = shared_hidden_buffer_.rows(num_rows, t.shared_up.num_panels * kPanel / 2);
    shared_ = shared_buffer_.rows(num_rows, t.shared_down.num_panels * kPanel);
  }

  // x: [num_rows, depth] of normed rows; keep(row, first column, vector) takes the sums, of all
  // columns of the last panel. All members call it alike.
  template <class Keep>
  void run(Member& m, const MoETerms& t, int32_t activation, const Rows<X>& x, int num_rows,
           int depth, Keep&& keep) {
    route(m, t, x, num_rows);
    m.begin(1);
    while (m.next() >= 0) groups_.build(t, ids_.data(), num_rows * top_k_);
    for_each(m, num_rows, [&](int r) { gather(x, r, depth); });
    multiply_groups(m, gathered_, t.up, [&](int place, const Packed<W>& w, const Tile& tile) {
      keep_gated(t, activation, w.bias, tile, place, hidden_);
    });
    multiply_groups(m, hidden_, t.down, [&](int place, const Packed<W>& w, const Tile& tile) {
      keep_sums(tile, w.bias, place, results_);
    });
    if (t.shared_up.data != nullptr) run_shared(m, t, activation, x, num_rows);
    for_each(m, num_rows, [&](int r) { combine(t, x, r, depth, keep); });
  }

 private:
  static constexpr int kRowsPerTask = 4;

  static Packed<W> packed(const MatrixTerms& m) { return packed_as<W>(m); }

  template <class Body>
  static void for_each(Member& m, int num_rows, Body&& body) {
    m.begin((num_rows + kRowsPerTask - 1) / kRowsPerTask);
    for (int task; (task = m.next()) >= 0;) {
      const int end = std::min(num_rows, (task + 1) * kRowsPerTask);
      for (int r = task * kRowsPerTask; r < end; ++r) body(r);
    }
  }

  // The router computes in fp32 whatever the model's type: a choice hangs on small differences.
  void route(Member& m, const MoETerms& t, const Rows<X>& x, int num_rows) {
    for_each(m, num_rows, [&](int r) {
      for_lanes(t.router_size, [&](int i, int count) {
        store_first(wide_.row(r) + i, load_some(x.row(r) + i, count), count);
      });
    });
    const Packed<float> router = packed_as<float>(t.router);
    multiply(m, wide_, num_rows, router,
             [&](const Tile& tile) { keep_sums(tile, router.bias, 0, logits_); });
    for_each(m, num_rows, [&](int r) {
      choosers_[m.index].choose(t, logits_.row(r), ids_.data() + r * top_k_,
                                weights_.data() + r * top_k_);
    });
  }

  void gather(const Rows<X>& x, int r, int depth) {
    for (int j = 0; j < top_k_; ++j) {
      const int place = groups_.place(r * top_k_ + j);
      if (place >= 0) std::memcpy(gathered_.row(place), x.row(r), depth * sizeof(X));
    }
  }

  // All groups' products with their experts' weights as one phase.
  // finish(first place of the group, weight, tile)
  template <class Finish>
  void multiply_groups(Member& m, const Rows<X>& x, const MatrixTerms* weights, Finish&& finish) {
    const auto& groups = groups_.groups();
    int num_tasks = 0;
    for (const auto& g : groups) num_tasks += tasks(g, weights).num_tasks();
    m.begin(num_tasks);
    size_t at = 0;
    int first_task = 0;
    for (int task; (task = m.next()) >= 0;) {
      if (task < first_task) at = first_task = 0;  // taken from another member's range
      Cut c = tasks(groups[at], weights);
      while (task >= first_task + c.num_tasks()) {
        first_task += c.num_tasks();
        c = tasks(groups[++at], weights);
      }
      const ExpertGroups::Group& g = groups[at];
      const Packed<W> weight = packed(weights[g.expert]);
      const Rows<X> rows{x.row(g.first_place), x.stride};
      run_task(c, task - first_task, rows, weight,
               [&](const Tile& tile) { finish(g.first_place, weight, tile); });
    }
  }

  static Cut tasks(const ExpertGroups::Group& g, const MatrixTerms* weights) {
    return cut<X>(g.num_rows, packed(weights[g.expert]));
  }

  void run_shared(Member& m, const MoETerms& t, int32_t activation, const Rows<X>& x,
                  int num_rows) {
    const Packed<W> up = packed(t.shared_up), down = packed(t.shared_down);
    multiply(m, x, num_rows, up, [&](const Tile& tile) {
      with_activation(activation,
                      [&](auto f) { keep_products(tile, nullptr, 0, shared_hidden_, plain(f)); });
    });
    multiply(m, shared_hidden_, num_rows, down,
             [&](const Tile& tile) { keep_sums(tile, nullptr, 0, shared_); });
  }

  static void keep_sums(const Tile& t, const float* bias, int first_row, const Rows<float>& out) {
    for (int v = 0; v < kPanel; v += kLanes) {
      const int column = t.panel * kPanel + v;
      const Vec b = bias != nullptr ? load(bias + column) : zero();
      for (int r = 0; r < t.num_rows; ++r) {
        store(out.row(first_row + t.first_row + r) + column, load(t.sums + r * kPanel + v) + b);
      }
    }
  }

  void keep_gated(const MoETerms& t, int32_t activation, const float* bias, const Tile& tile,
                  int first_row, const Rows<X>& out) {
    if (t.swiglu_limit == 0.0f) {
      return with_activation(
          activation, [&](auto f) { keep_products(tile, bias, first_row, out, plain(f)); });
    }
    const Vec limit = splat(t.swiglu_limit), alpha = splat(t.swiglu_alpha);
    keep_products(tile, bias, first_row, out, [&](Vec gate, Vec up) {
      gate = min(limit, gate);
      up = max(splat(0.0f) - limit, min(limit, up));
      return (up + splat(1.0f)) * gate * sigmoid(gate * alpha);
    });
  }

  template <class F>
  static auto plain(F f) {
    return [f](Vec gate, Vec up) { return f(gate) * up; };
  }

  // The first half of the tile's columns is the gate, the second what goes with it.
  template <class F>
  static void keep_products(const Tile& t, const float* bias, int first_row, const Rows<X>& out,
                            F&& f) {
    constexpr int kHalf = kPanel / 2;
    for (int v = 0; v < kHalf; v += kLanes) {
      const float* b = bias != nullptr ? bias + t.panel * kPanel + v : nullptr;
      const Vec gate_bias = b != nullptr ? load(b) : zero();
      const Vec up_bias = b != nullptr ? load(b + kHalf) : zero();
      for (int r = 0; r < t.num_rows; ++r) {
        const float* sums = t.sums + r * kPanel + v;
        const Vec y = f(load(sums) + gate_bias, load(sums + kHalf) + up_bias);
        store(out.row(first_row + t.first_row + r) + t.panel * kHalf + v, y);
      }
    }
  }

  template <class Keep>
  void combine(const MoETerms& t, const Rows<X>& x, int r, int depth, Keep&& keep) {
    float shared_weight = 0.0f;
    if (t.shared_up.data != nullptr) shared_weight = shared_gate(t, x.row(r), depth);
    const int num_columns = t.down[0].num_panels * kPanel;
    for (int column = 0; column < num_columns; column += kLanes) {
      Vec sum = zero();
      for (int j = 0; j < top_k_; ++j) {
        const int place = groups_.place(r * top_k_ + j);
        if (place < 0) continue;
        sum = fma(splat(weights_[r * top_k_ + j]), load(results_.row(place) + column), sum);
      }
      if (t.shared_up.data != nullptr) {
        sum = fma(splat(shared_weight), load(shared_.row(r) + column), sum);
      }
      keep(r, column, sum);
    }
  }

  static float shared_gate(const MoETerms& t, const X* x, int depth) {
    if (t.shared_gate == nullptr) return 1.0f;
    Vec sum = zero();
    for_lanes(std::min(depth, t.router_size), [&](int i, int count) {
      sum = fma(load_some(x + i, count), load_some(t.shared_gate + i, count), sum);
    });
    return 1.0f / (1.0f + std::exp(-reduce_add(sum)));
  }

  int top_k_ = 0;
  std::vector<ExpertChooser> choosers_;  // one for each member
  ExpertGroups groups_;
  std::vector<int32_t> ids_;    // [rows * top_k]
  std::vector<float> weights_;  // [rows * top_k]
  Buffer<float> wide_buffer_, logits_buffer_, results_buffer_, shared_buffer_;
  Buffer<X> gathered_buffer_, hidden_buffer_, shared_hidden_buffer_;
  Rows<float> wide_, logits_, results_, shared_;
  Rows<X> gathered_, hidden_, shared_hidden_;
};

}  // namespace shoal
