// Which experts a token takes, and which rows an expert computes.
//
// The choice is made as worker/layers/moe.py defines it, equal scores going to the lower expert.
// Then rows are grouped by expert, so that each expert that has any computes them in one product.
// Called by moe.h; knows nothing of matrices.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "model.h"

namespace shoal {

// The k greatest of scores[n], in falling order, to ids; `taken` marks them. NaNs come last.
inline void take_greatest(const float* scores, int n, int k, int32_t* ids,
                          std::vector<char>& taken) {
  taken.assign(n, 0);
  for (int j = 0; j < k; ++j) {
    int best = -1;
    for (int i = 0; i < n; ++i) {
      if (!taken[i] && (best < 0 || scores[i] > scores[best])) best = i;
    }
    taken[best] = 1;
    ids[j] = best;
  }
}

// One thread's choices, over memory that it keeps: a phase of a team must not ask for more.
class ExpertChooser {
 public:
  // Before choices for layers such as `t`. Raises: std::bad_alloc.
  void reserve(const MoETerms& t) {
    choices_.reserve(t.num_experts);
    taken_.reserve(t.num_experts);
    group_scores_.reserve(t.num_groups);
    ids_.reserve(std::max(t.best_of_group, t.top_groups));
  }

  // logits: [num_experts], overwritten; ids, weights: [top_k].
  void choose(const MoETerms& t, float* logits, int32_t* ids, float* weights) {
    const int n = t.num_experts;
    score(t, logits);
    choices_.assign(logits, logits + n);
    if (t.choice_bias != nullptr) {
      for (int i = 0; i < n; ++i) choices_[i] += t.choice_bias[i];
    }
    if (t.num_groups > 1) leave_out_groups(t);
    take_greatest(choices_.data(), n, t.top_k, ids, taken_);
    float sum = 0.0f;
    for (int j = 0; j < t.top_k; ++j) sum += logits[ids[j]];
    const float factor = t.weight_scale / (t.renormalize ? sum : 1.0f);
    for (int j = 0; j < t.top_k; ++j) weights[j] = logits[ids[j]] * factor;
  }

 private:
  static void score(const MoETerms& t, float* x) {
    const int n = t.num_experts;
    if (t.is_sigmoid) {
      for (int i = 0; i < n; ++i) x[i] = 1.0f / (1.0f + std::exp(-x[i]));
      return;
    }
    const float top = *std::max_element(x, x + n);
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
    for (int i = 0; i < n; ++i) x[i] /= sum;
  }

  // A group is as good as its best few experts together.
  void leave_out_groups(const MoETerms& t) {
    const int size = t.num_experts / t.num_groups;
    group_scores_.resize(t.num_groups);
    ids_.resize(std::max(t.best_of_group, t.top_groups));
    for (int g = 0; g < t.num_groups; ++g) {
      const float* of_group = choices_.data() + g * size;
      take_greatest(of_group, size, t.best_of_group, ids_.data(), taken_);
      group_scores_[g] = 0.0f;
      for (int j = 0; j < t.best_of_group; ++j) group_scores_[g] += of_group[ids_[j]];
    }
    take_greatest(group_scores_.data(), t.num_groups, t.top_groups, ids_.data(), taken_);
    for (int i = 0; i < t.num_experts; ++i) {
      if (!taken_[i / size]) choices_[i] = -std::numeric_limits<float>::infinity();
    }
  }

  std::vector<float> choices_, group_scores_;
  std::vector<int32_t> ids_;
  std::vector<char> taken_;
};

// Every choice of one of this rank's experts has a place; those of one expert lie together, in
// tokens' order.
class ExpertGroups {
 public:
  struct Group {
    int expert;  // among this rank's
    int first_place, num_rows;
  };

  // Before so many choices among so many of this rank's experts. Raises: std::bad_alloc.
  void reserve(int num_own, int num_choices) {
    starts_.reserve(num_own + 1);
    groups_.reserve(num_own);
    places_.reserve(num_choices);
  }

  // ids: [num_choices], token by token.
  void build(const MoETerms& t, const int32_t* ids, int num_choices) {
    starts_.assign(t.num_own + 1, 0);
    places_.resize(num_choices);
    for (int i = 0; i < num_choices; ++i) {
      if (const int e = own(t, ids[i]); e >= 0) ++starts_[e + 1];
    }
    groups_.clear();
    for (int e = 0; e < t.num_own; ++e) {
      const int num_rows = starts_[e + 1];
      starts_[e + 1] += starts_[e];
      if (num_rows > 0) groups_.push_back({e, starts_[e], num_rows});
    }
    for (int i = 0; i < num_choices; ++i) {
      const int e = own(t, ids[i]);
      places_[i] = e < 0 ? -1 : starts_[e]++;
    }
  }

  const std::vector<Group>& groups() const { return groups_; }
  // -1: another rank computes it.
  int place(int choice) const { return places_[choice]; }

 private:
  static int own(const MoETerms& t, int id) {
    const int e = id - t.first_expert;
    return e < t.num_own ? std::max(e, -1) : -1;
  }

  std::vector<int> starts_, places_;
  std::vector<Group> groups_;
};

}  // namespace shoal
