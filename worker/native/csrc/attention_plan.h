// How one step's attention is cut into units of work that any thread may take in any order.
//
// Sequences with many query tokens (prompt chunks) are cut into tiles of queries, for one KV head
// each. Those with few (decodes) are cut along their history instead (split-KV, as in
// Flash-Decoding, Dao et al. 2023), so that one long stream keeps all threads busy; the last unit
// of a sequence merges the pieces. How a sequence is cut depends on nothing but itself: its results
// are the same in any batch and on any number of threads. Integers only; built once a step for
// each kind of layers, used by attention.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "tile.h"

namespace shoal {

constexpr int kTileKeys = 128;      // keys at most whose scores are computed, then weighed, at once
constexpr int kFewestTileKeys = 32;
constexpr int kTileBytes = 96 << 10;  // of a tile's keys and values, where memory is the limit
constexpr int kFewQueryRows = 12;   // of a KV head: packing values would not pay
constexpr int kQueryRows = 96;      // query tokens x heads of a KV head in a tile of queries
constexpr int kSplitQueries = 8;    // up to so many query tokens the history is cut
constexpr int kPieceKeys = 512;     // at least so long are the pieces
constexpr int kMaxPieces = 64;
constexpr int kUnitsPerThread = 4;  // wanted, so that threads end together

// What the units of a layer's attention have in common.
struct AttentionShape {
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int block_size;
  int window;  // a token sees itself and the window - 1 tokens before it; 0: all
};

// The sequences of a step. A sequence's query tokens are the last of its context; the tokens of
// the step stand in the sequences' order. Block tables are a layer's: they have one width.
struct AttentionBatch {
  int num_sequences;
  const int32_t* query_lens;    // [R]
  const int32_t* context_lens;  // [R], the query tokens included
  int table_width;
};

struct AttentionUnit {
  int sequence;
  int first_query;  // within the sequence's query tokens
  int num_queries;
  int first_kv_head;
  int num_kv_heads;
  int first_key;
  int last_key;  // one beyond
  int piece;     // of its sequence's history; -1: not cut

  int64_t work() const {
    return static_cast<int64_t>(last_key - first_key) * num_queries * num_kv_heads;
  }
};

// Where the pieces of one cut sequence leave their results.
struct AttentionMerge {
  int num_pieces = 0;
  int64_t first_record = 0;  // records: [num_pieces, query tokens, heads]
  int counter = 0;           // one for each group of KV heads
  int kv_heads_per_group = 0;
};

class AttentionPlan {
 public:
  // Replaces the former plan; memory is kept. `batch` must stay valid as long as the plan is used.
  void build(const AttentionShape& shape, const AttentionBatch& batch, int num_threads) {
    shape_ = shape;
    batch_ = batch;
    num_threads_ = num_threads;
    units_.clear();
    merges_.assign(batch.num_sequences, AttentionMerge());
    first_tokens_.resize(batch.num_sequences);
    num_records_ = 0;
    num_counters_ = 0;
    const int groups = num_head_groups();
    for (int r = 0, token = 0; r < batch.num_sequences; token += batch.query_lens[r++]) {
      first_tokens_[r] = token;
      if (batch.query_lens[r] <= kSplitQueries) {
        add_pieces(r, groups);
      } else {
        add_query_tiles(r);
      }
    }
    std::stable_sort(units_.begin(), units_.end(),
                     [](const auto& a, const auto& b) { return a.work() > b.work(); });
    reserve();
  }

  int num_tasks() const { return static_cast<int>(units_.size()); }
  const AttentionUnit& unit(int i) const { return units_[i]; }
  const AttentionShape& shape() const { return shape_; }
  const AttentionBatch& batch() const { return batch_; }
  const AttentionMerge& merge(int sequence) const { return merges_[sequence]; }
  int first_token(int sequence) const { return first_tokens_[sequence]; }
  int group_size() const { return shape_.num_heads / shape_.num_kv_heads; }

  // Numbers of a record: the padded sums of values, then the maximum and the sum of weights.
  int record_size() const { return round_up(shape_.head_dim, 2 * kLanes) + kLanes; }
  float* record(int64_t index) const { return records_.get() + index * record_size(); }

  // Whether the caller's piece was the last of its heads: all others' records are then visible.
  // Resets the counter, for the next layer.
  bool is_last_piece(const AttentionUnit& unit) const {
    const AttentionMerge& merge = merges_[unit.sequence];
    const int group = unit.first_kv_head / merge.kv_heads_per_group;
    std::atomic<int>& counter = counters_[merge.counter + group];
    if (counter.fetch_add(1, std::memory_order_acq_rel) + 1 < merge.num_pieces) return false;
    counter.store(0, std::memory_order_relaxed);
    return true;
  }

 private:
  int num_pieces(int num_keys) const {
    return std::min(kMaxPieces, (num_keys + kPieceKeys - 1) / kPieceKeys);
  }

  int first_visible(int position) const {
    return shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
  }

  // KV heads are computed together, since they lie together, unless threads would be idle. What a
  // head's result is does not depend on it.
  int num_head_groups() const {
    int64_t num_units = 0;
    for (int r = 0; r < batch_.num_sequences; ++r) {
      num_units += batch_.query_lens[r] <= kSplitQueries ? num_pieces(batch_.context_lens[r])
                                                         : shape_.num_kv_heads;
    }
    const int64_t wanted = num_threads_ > 1 ? kUnitsPerThread * num_threads_ : 1;
    const int64_t missing = (wanted + num_units - 1) / std::max<int64_t>(num_units, 1);
    return static_cast<int>(std::min<int64_t>(shape_.num_kv_heads, missing));
  }

  void add_pieces(int r, int num_groups) {
    const int context = batch_.context_lens[r], queries = batch_.query_lens[r];
    const int first = first_visible(context - queries) / kTileKeys * kTileKeys;
    const int pieces = num_pieces(context - first);
    const int length = round_up((context - first + pieces - 1) / pieces, kTileKeys);
    const int heads = (shape_.num_kv_heads + num_groups - 1) / num_groups;
    int num_added = 0;
    for (int key = first; key < context; key += length, ++num_added) {
      const int last = std::min(context, key + length);
      for (int h = 0; h < shape_.num_kv_heads; h += heads) {
        const int some = std::min(heads, shape_.num_kv_heads - h);
        units_.push_back({r, 0, queries, h, some, key, last, pieces > 1 ? num_added : -1});
      }
    }
    if (pieces == 1) return;
    merges_[r] = {num_added, num_records_, num_counters_, heads};
    num_records_ += static_cast<int64_t>(num_added) * queries * shape_.num_heads;
    num_counters_ += (shape_.num_kv_heads + heads - 1) / heads;
  }

  void add_query_tiles(int r) {
    const int context = batch_.context_lens[r], queries = batch_.query_lens[r];
    const int history = context - queries;
    const int tile = std::max(1, kQueryRows / group_size());
    for (int query = 0; query < queries; query += tile) {
      const int some = std::min(tile, queries - query);
      const int first = first_visible(history + query) / kTileKeys * kTileKeys;
      for (int h = 0; h < shape_.num_kv_heads; ++h) {
        units_.push_back({r, query, some, h, 1, first, history + query + some, -1});
      }
    }
  }

  void reserve() {
    const int64_t num_floats = num_records_ * record_size();
    if (num_floats > records_capacity_) {
      records_.reset(new float[num_floats]);
      records_capacity_ = num_floats;
    }
    if (num_counters_ > counters_capacity_) {
      counters_.reset(new std::atomic<int>[num_counters_]);
      for (int i = 0; i < num_counters_; ++i) counters_[i].store(0, std::memory_order_relaxed);
      counters_capacity_ = num_counters_;
    }
  }

  AttentionShape shape_{};
  AttentionBatch batch_{};
  int num_threads_ = 1;
  std::vector<AttentionUnit> units_;
  std::vector<AttentionMerge> merges_;  // one for each sequence
  std::vector<int> first_tokens_;
  int64_t num_records_ = 0, records_capacity_ = 0;
  int num_counters_ = 0, counters_capacity_ = 0;
  std::unique_ptr<float[]> records_;
  std::unique_ptr<std::atomic<int>[]> counters_;
};

}  // namespace shoal
