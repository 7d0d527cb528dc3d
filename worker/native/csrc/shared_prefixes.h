// Which sequences of a step begin with the same blocks of the KV cache, and how far.
//
// The prefix cache lets sequences that begin with the same tokens hold the same physical blocks; a
// common system prompt is the usual case. Sorted by their block tables such sequences are
// neighbours, and how much each has in common with the one before tells all groups, nested ones
// too: sequences i .. j share what every one of them beyond i shares with its neighbour. Integers
// only; built once a step by attention_plan.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace shoal {

// A sequence whose history is cut into pieces.
struct PrefixCandidate {
  int sequence;
  int piece_keys;
  bool has_few_rows;  // sequences share only if they agree in this and in the length of pieces
  int num_pieces;     // so many of its first pieces may be shared with others

  bool is_cut_like(const PrefixCandidate& other) const {
    return piece_keys == other.piece_keys && has_few_rows == other.has_few_rows;
  }
};

class SharedPrefixes {
 public:
  // Orders the candidates. tables: those of all groups of layers that matter, [R, table_width] each;
  // what is shared is so in every one of them.
  void find(std::vector<PrefixCandidate>& candidates, const std::vector<const int32_t*>& tables,
            int table_width, int block_size) {
    tables_ = &tables;
    table_width_ = table_width;
    block_size_ = block_size;
    std::sort(candidates.begin(), candidates.end(),
              [&](const auto& a, const auto& b) { return is_before(a, b); });
    num_shared_.assign(candidates.size(), 0);
    for (size_t i = 1; i < candidates.size(); ++i) {
      num_shared_[i] = count_shared(candidates[i - 1], candidates[i]);
    }
  }

  // One beyond those from `first` on that share its piece `piece`.
  size_t end_of_run(size_t first, int piece) const {
    size_t end = first + 1;
    while (end < num_shared_.size() && num_shared_[end] > piece) ++end;
    return end;
  }

  // The candidate's leading pieces that the one before it has too.
  int num_shared(size_t candidate) const { return num_shared_[candidate]; }

 private:
  const int32_t* row(const int32_t* table, const PrefixCandidate& c) const {
    return table + static_cast<int64_t>(c.sequence) * table_width_;
  }

  int num_blocks(const PrefixCandidate& c) const {
    return (c.num_pieces * c.piece_keys + block_size_ - 1) / block_size_;
  }

  // Any order of the tables serves in which rows with the same beginning are neighbours.
  bool is_before(const PrefixCandidate& a, const PrefixCandidate& b) const {
    if (a.piece_keys != b.piece_keys) return a.piece_keys < b.piece_keys;
    if (a.has_few_rows != b.has_few_rows) return a.has_few_rows;
    const int a_blocks = num_blocks(a), b_blocks = num_blocks(b);
    const int num_both = std::min(a_blocks, b_blocks);
    if (num_both > 0) {
      const int32_t* table = tables_->front();
      const int order = std::memcmp(row(table, a), row(table, b), num_both * sizeof(int32_t));
      if (order != 0) return order < 0;
    }
    return a_blocks != b_blocks ? a_blocks < b_blocks : a.sequence < b.sequence;
  }

  int count_shared(const PrefixCandidate& a, const PrefixCandidate& b) const {
    if (!a.is_cut_like(b)) return 0;
    const int num_both = std::min(a.num_pieces, b.num_pieces);
    int num_blocks = std::min(this->num_blocks(a), this->num_blocks(b));
    for (const int32_t* table : *tables_) {
      const int32_t* blocks = row(table, a);
      num_blocks = static_cast<int>(
          std::mismatch(blocks, blocks + num_blocks, row(table, b)).first - blocks);
    }
    return std::min(num_both, num_blocks * block_size_ / a.piece_keys);
  }

  const std::vector<const int32_t*>* tables_ = nullptr;
  int table_width_ = 0, block_size_ = 1;
  std::vector<int> num_shared_;
};

}  // namespace shoal
