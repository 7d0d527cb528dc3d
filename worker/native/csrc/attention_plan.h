// How one step's attention is cut into units of work that any thread may take in any order.
//
// Sequences with many query tokens (prompt chunks) are cut into tiles of queries, for one KV head
// each. Those with few (decodes) are cut along their history instead (split-KV, as in
// Flash-Decoding, Dao et al. 2023), so that one long stream keeps all threads busy; the last unit
// of a sequence merges the pieces. Pieces that several sequences hold in the same blocks are one
// unit with the query tokens of all (Hydragen, Juravsky et al. 2024; ChunkAttention, Ye et al.
// 2024), so a common prefix is read and packed once; unlike there, every row is computed as it
// would be alone. How a sequence is cut depends on nothing but itself: its results are the same in
// any batch and on any number of threads. Integers only; built once a step for each kind of layers,
// used by attention.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "shared_prefixes.h"
#include "tile.h"

namespace shoal {

constexpr int kTileKeys = 128;      // keys at most whose scores are computed, then weighed, at once
constexpr int kFewestTileKeys = 32;
constexpr int kTileBytes = 96 << 10;  // of a tile's keys and values, where memory is the limit
constexpr int kFewQueryRows = 12;   // of a KV head: packing values would not pay
constexpr int kQueryRows = 192;     // query tokens x heads of a KV head in a unit
constexpr int kSplitQueries = 8;    // up to so many query tokens the history is cut
constexpr int kPieceKeys = 512;     // in a piece; twice, four times .. as many in long histories
constexpr int kMaxPieces = 64;
constexpr int kUnitsPerThread = 4;  // wanted, so that threads end together
constexpr int kKeyRows = 6;         // reading and packing a key costs as much as so many query rows

static_assert(kPieceKeys % kTileKeys == 0, "all keys of a shared piece are in whole tiles");

// What the units of a layer's attention have in common.
struct AttentionShape {
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int block_size;
  int window;  // a token sees itself and the window - 1 tokens before it; 0: all
};

// The sequences of a step. A sequence's query tokens are the last of its context; the tokens of
// the step stand in the sequences' order. Block tables are a layer's; all have one width.
struct AttentionBatch {
  int num_sequences;
  const int32_t* query_lens;    // [R]
  const int32_t* context_lens;  // [R], the query tokens included
  int table_width;
};

// A query token: its row in the step, and where the results of its heads are left until they are
// merged.
struct AttentionQuery {
  int token;
  int position;
  int sequence;
  int first_record;  // records: [pieces of the sequence, heads]; of cut sequences only
};

struct AttentionUnit {
  int first_query;  // of the plan's; those of one sequence stand together
  int num_queries;
  bool has_few_rows;  // of one sequence: what the size of tiles may depend on
  int first_kv_head;
  int num_kv_heads;
  int first_key;
  int last_key;  // one beyond
  int piece;     // of its sequences' histories; -1: not cut
};

// Where the pieces of one cut sequence meet.
struct AttentionMerge {
  int num_pieces = 0;
  int counter = 0;  // the first: there is one for each group of KV heads
};

class AttentionPlan {
 public:
  // Replaces the former plan; memory is kept. tables: [R, table_width] each, of all groups of layers
  // that will run the plan: without any nothing is shared. Arrays are not needed afterwards.
  void build(const AttentionShape& shape, const AttentionBatch& batch,
             const std::vector<const int32_t*>& tables, int num_threads) {
    shape_ = shape;
    batch_ = batch;
    num_threads_ = num_threads;
    num_records_ = num_counters_ = 0;
    list_queries();
    list_candidates(!tables.empty());
    prefixes_.find(candidates_, tables, batch.table_width, shape.block_size);
    parts_.clear();
    for (size_t i = 0; i < candidates_.size(); ++i) add_pieces(i);
    for (int r = 0; r < batch.num_sequences; ++r) {
      if (batch.query_lens[r] > kSplitQueries) add_query_tiles(r);
    }
    split_heads();
    std::stable_sort(units_.begin(), units_.end(),
                     [&](const auto& a, const auto& b) { return work(a) > work(b); });
    reserve();
  }

  int num_tasks() const { return static_cast<int>(units_.size()); }
  const AttentionUnit& unit(int i) const { return units_[i]; }
  const AttentionQuery* queries(const AttentionUnit& unit) const {
    return queries_.data() + unit.first_query;
  }
  const AttentionShape& shape() const { return shape_; }
  int table_width() const { return batch_.table_width; }
  int num_pieces(int sequence) const { return merges_[sequence].num_pieces; }
  int group_size() const { return shape_.num_heads / shape_.num_kv_heads; }

  // Numbers of a record: the padded sums of values, then the maximum and the sum of weights.
  int record_size() const { return round_up(shape_.head_dim, 2 * kLanes) + kLanes; }
  float* record(const AttentionQuery& query, int piece, int head) const {
    const int64_t index = query.first_record + static_cast<int64_t>(piece) * shape_.num_heads + head;
    return records_ + index * record_size();
  }

  // Whether the caller's piece was the sequence's last of the unit's heads: all others' records are
  // then visible. Resets the counter, for the next layer.
  bool is_last_piece(const AttentionUnit& unit, int sequence) const {
    const AttentionMerge& merge = merges_[sequence];
    std::atomic<int>& counter = counters_[merge.counter + unit.first_kv_head / heads_per_unit_];
    if (counter.fetch_add(1, std::memory_order_acq_rel) + 1 < merge.num_pieces) return false;
    counter.store(0, std::memory_order_relaxed);
    return true;
  }

 private:
  int first_visible(int position) const {
    return shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
  }

  // Each token once; shared pieces add those of their sequences once more.
  void list_queries() {
    queries_.clear();
    first_queries_.resize(batch_.num_sequences);
    for (int r = 0; r < batch_.num_sequences; ++r) {
      const int first = static_cast<int>(queries_.size()), count = batch_.query_lens[r];
      first_queries_[r] = first;
      for (int i = 0; i < count; ++i) {
        queries_.push_back({first + i, batch_.context_lens[r] - count + i, r, 0});
      }
    }
  }

  // The first key that any of the sequence's tokens sees, in whole tiles.
  int first_key(int r) const {
    const int first_position = batch_.context_lens[r] - batch_.query_lens[r];
    return first_visible(first_position) / kTileKeys * kTileKeys;
  }

  bool has_few_rows(int num_queries) const { return num_queries * group_size() <= kFewQueryRows; }

  // The sequences that are cut along their history: at the same keys, but for the longest, so that
  // common pieces meet. What has outgrown its window shares nothing: its pieces begin where the
  // window does, and blocks before it may be another sequence's.
  void list_candidates(bool has_tables) {
    candidates_.clear();
    merges_.assign(batch_.num_sequences, AttentionMerge());
    for (int r = 0; r < batch_.num_sequences; ++r) {
      const int context = batch_.context_lens[r], queries = batch_.query_lens[r];
      if (queries > kSplitQueries) continue;
      const int num_keys = context - first_key(r);
      int length = kPieceKeys;
      while (length * kMaxPieces < num_keys) length *= 2;
      const int num_pieces = (num_keys + length - 1) / length;
      // All query tokens must see all of a shared piece; a sequence's last piece is its own.
      const int num_common = std::min((context - queries + 1) / length, num_pieces - 1);
      const bool can_share = has_tables && (shape_.window == 0 || context <= shape_.window);
      candidates_.push_back({r, length, has_few_rows(queries), can_share ? num_common : 0});
      merges_[r].num_pieces = num_pieces;
      if (num_pieces > 1) add_records(r);
    }
  }

  void add_records(int r) {
    for (int i = 0; i < batch_.query_lens[r]; ++i) {
      queries_[first_queries_[r] + i].first_record = num_records_;
      num_records_ += merges_[r].num_pieces * shape_.num_heads;
    }
  }

  // Those pieces that no candidate before has, with all candidates after it that have them too.
  void add_pieces(size_t candidate) {
    const int num_pieces = merges_[candidates_[candidate].sequence].num_pieces;
    for (int piece = prefixes_.num_shared(candidate); piece < num_pieces; ++piece) {
      add_run(candidate, prefixes_.end_of_run(candidate, piece), piece);
    }
  }

  // One piece of candidates first .. end - 1, in units of about the same number of rows.
  void add_run(size_t first, size_t end, int piece) {
    int num_queries = 0;
    for (size_t i = first; i < end; ++i) num_queries += num_queries_of(i);
    const int most = std::max(1, kQueryRows / group_size());
    const int num_units = (num_queries + most - 1) / most;
    const int wanted = (num_queries + num_units - 1) / num_units;
    for (size_t last; first < end; first = last) {
      int some = num_queries_of(first);
      for (last = first + 1; last < end; ++last) {
        if (some + num_queries_of(last) > wanted) break;
        some += num_queries_of(last);
      }
      add_piece(first, last, some, piece);
    }
  }

  int num_queries_of(size_t candidate) const {
    return batch_.query_lens[candidates_[candidate].sequence];
  }

  // One unit of the candidates first .. last - 1.
  void add_piece(size_t first, size_t last, int num_queries, int piece) {
    const PrefixCandidate& c = candidates_[first];
    int first_query = first_queries_[c.sequence];
    if (last - first > 1) {
      first_query = static_cast<int>(queries_.size());
      for (size_t i = first; i < last; ++i) {
        const int query = first_queries_[candidates_[i].sequence];
        for (int j = 0; j < num_queries_of(i); ++j) {
          queries_.push_back(AttentionQuery(queries_[query + j]));
        }
      }
    }
    const int key = first_key(c.sequence) + piece * c.piece_keys;
    const int last_key = std::min(batch_.context_lens[c.sequence], key + c.piece_keys);
    const bool is_cut = merges_[c.sequence].num_pieces > 1;
    parts_.push_back({first_query, num_queries, c.has_few_rows, 0, shape_.num_kv_heads, key,
                      last_key, is_cut ? piece : -1});
  }

  void add_query_tiles(int r) {
    const int context = batch_.context_lens[r], queries = batch_.query_lens[r];
    const int history = context - queries;
    const int tile = std::max(1, kQueryRows / group_size());
    for (int query = 0; query < queries; query += tile) {
      const int some = std::min(tile, queries - query);
      const int first = first_visible(history + query) / kTileKeys * kTileKeys;
      for (int h = 0; h < shape_.num_kv_heads; ++h) {
        parts_.push_back({first_queries_[r] + query, some, has_few_rows(some), h, 1, first,
                          history + query + some, -1});
      }
    }
  }

  int64_t work(const AttentionUnit& unit) const {
    return static_cast<int64_t>(unit.last_key - unit.first_key) * unit.num_kv_heads *
           (unit.num_queries * group_size() + kKeyRows);
  }

  // KV heads of a piece are computed together, since they lie together, unless that makes units so
  // large that threads would wait for the last. What a head's result is does not depend on it.
  int num_head_groups() const {
    int64_t sum = 0, largest = 0;
    for (const AttentionUnit& part : parts_) {
      sum += work(part);
      if (part.num_kv_heads > 1) largest = std::max(largest, work(part));
    }
    if (num_threads_ == 1 || largest == 0) return 1;
    const int64_t wanted = kUnitsPerThread * num_threads_;
    return static_cast<int>(
        std::min<int64_t>(shape_.num_kv_heads, (largest * wanted + sum - 1) / sum));
  }

  void split_heads() {
    const int num_groups = num_head_groups();
    heads_per_unit_ = (shape_.num_kv_heads + num_groups - 1) / num_groups;
    units_.clear();
    for (const AttentionUnit& part : parts_) {
      for (int h = 0; h < part.num_kv_heads; h += heads_per_unit_) {
        AttentionUnit unit = part;
        unit.first_kv_head += h;
        unit.num_kv_heads = std::min(heads_per_unit_, part.num_kv_heads - h);
        units_.push_back(unit);
      }
    }
    for (AttentionMerge& merge : merges_) {
      merge.counter = num_counters_;
      if (merge.num_pieces > 1) num_counters_ += num_groups;
    }
  }

  void reserve() {
    records_ = record_memory_.reserve(static_cast<size_t>(num_records_) * record_size());
    if (num_counters_ > counters_capacity_) {
      counters_.reset(new std::atomic<int>[num_counters_]);
      for (int i = 0; i < num_counters_; ++i) counters_[i].store(0, std::memory_order_relaxed);
      counters_capacity_ = num_counters_;
    }
  }

  AttentionShape shape_{};
  AttentionBatch batch_{};
  int num_threads_ = 1;
  int heads_per_unit_ = 1;
  std::vector<AttentionQuery> queries_;
  std::vector<int> first_queries_;      // of each sequence
  std::vector<AttentionMerge> merges_;  // of each sequence
  std::vector<PrefixCandidate> candidates_;
  SharedPrefixes prefixes_;
  std::vector<AttentionUnit> parts_;  // units of all KV heads
  std::vector<AttentionUnit> units_;
  int num_records_ = 0, num_counters_ = 0, counters_capacity_ = 0;
  Buffer<float> record_memory_;
  float* records_ = nullptr;
  std::unique_ptr<std::atomic<int>[]> counters_;
};

}  // namespace shoal
