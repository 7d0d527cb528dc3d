// Attention straight from the paged KV cache, unit by unit of an AttentionPlan.
//
// The softmax is taken online (FlashAttention, Dao et al. 2022, algorithm 1; Rabe & Staats 2021):
// tiles of keys are packed once for all query rows of a KV head, scores of a few rows exist at a
// time, and sums are rescaled when a greater score comes. All in base 2: the scale carries log2(e).
// The caller hands a plan's tasks to threads, each with scratch of its own. A cache is [num_blocks,
// block_size, kv_heads, head_dim] for keys and likewise for values; both may be the same (MLA).
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "attention_plan.h"

namespace shoal {

// What a layer's attention computes, beside its tensors.
struct AttentionTerms {
  float scale;
  float soft_cap;              // scores become cap * tanh(score / cap); 0: none
  const float* alibi_slopes;   // [heads]: scores fall by slope * distance; nullptr: none
  const float* sinks;          // [heads]: the score of one more key whose values are 0; or nullptr
};

// T: numbers of the cache, Out: of the result.
template <class T, class Out>
struct AttentionTensors {
  const float* q;  // [tokens, q_stride], heads side by side
  int64_t q_stride;
  const T* k_cache;
  const T* v_cache;
  Out* out;  // [tokens, out_stride], heads side by side
  int64_t out_stride;
  const int32_t* block_tables;  // [R, the batch's table_width]: where this layer's tokens are
};

// One thread's working memory, carved out of one allocation.
class AttentionScratch {
 public:
  // For all units of the plan, whichever the thread takes.
  static size_t num_bytes(const AttentionPlan& plan) {
    const Sizes s(plan);
    return 64 + sizeof(float) * (s.queries + s.keys + s.values + s.sums + s.scores + s.weights +
                                 s.rows * (kLanes + 1));
  }

  AttentionScratch(const AttentionPlan& plan, void* memory) {
    const Sizes s(plan);
    const auto address = (reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64;
    queries = reinterpret_cast<Unit*>(address);
    keys = queries + s.queries;
    values = keys + s.keys;
    sums = reinterpret_cast<float*>(values + s.values);
    scores = sums + s.sums;
    weights = reinterpret_cast<Unit*>(scores + s.scores);
    weight_sums = scores + s.scores + s.weights;
    maxima = weight_sums + s.rows * kLanes;
  }

  Unit* queries;       // [rows][units of a head]
  Unit* keys;          // [units of a head][kTileColumns]
  Unit* values;        // [kTileKeys / numbers per unit][padded width]
  float* sums;         // [rows][padded width]: weighed values so far
  float* scores;       // [rows of a KV head][kTileKeys]
  Unit* weights;       // [kTileRows][kTileKeys / numbers per unit]
  float* weight_sums;  // [rows][kLanes], partial
  float* maxima;       // [rows]

 private:
  struct Sizes {
    explicit Sizes(const AttentionPlan& plan) {
      const AttentionShape& shape = plan.shape();
      const size_t dim = round_up(shape.head_dim, 2 * kLanes);
      for (int i = 0; i < plan.num_tasks(); ++i) {
        const AttentionUnit& unit = plan.unit(i);
        const size_t some = static_cast<size_t>(unit.num_queries) * plan.group_size();
        rows_per_head = std::max(rows_per_head, some);
        rows = std::max(rows, some * unit.num_kv_heads);
      }
      rows = (rows + kLanes - 1) / kLanes * kLanes;
      queries = rows * dim;
      keys = kTileColumns * dim;
      values = kTileKeys * dim;
      sums = rows * dim;
      scores = rows_per_head * kTileKeys;
      weights = kTileRows * kTileKeys;
    }
    size_t rows = 1, rows_per_head = 1, queries, keys, values, sums, scores, weights;
  };
};

template <class T, class Out>
class AttentionWorker {
  using Dot = typename DotOf<T>::type;
  static constexpr float kLog2E = 1.44269504f;
  static constexpr float kHidden = -std::numeric_limits<float>::infinity();

  // A unit of the plan, and what follows of it.
  struct Place {
    AttentionUnit unit{};
    const AttentionQuery* queries = nullptr;
    const int32_t* table = nullptr;  // of its first sequence: all have its keys in the same blocks
    int first_position = 0;
    int rows_per_head = 0;
    int tile_keys = kTileKeys;
    int first_key = 0;
  };

  // The rows of a tile's keys and values, from the unit's first KV head on.
  struct TileRows {
    int num_keys;  // in whole vectors
    const T* rows[2 * kTileKeys];  // keys, then values
    const T* const* k() const { return rows; }
    const T* const* v() const { return rows + num_keys; }
  };

 public:
  AttentionWorker(const AttentionPlan& plan, const AttentionTerms& terms,
                  const AttentionTensors<T, Out>& tensors, void* scratch)
      : plan_(plan),
        shape_(plan.shape()),
        terms_(terms),
        tensors_(tensors),
        scratch_(plan, scratch),
        steps_(num_units<Dot>(shape_.head_dim)),
        width_(Dot::padded_width(shape_.head_dim)),
        group_(plan.group_size()) {}

  // Tasks in ascending order come fastest: while one ends, the first tile of the next is fetched.
  void run(int task) {
    const bool is_located = task == located_;
    at_ = place(task);
    load_queries();
    if (!is_located) locate_keys(at_, at_.first_key, &next_);
    for (int key = at_.first_key; key < at_.unit.last_key; key += at_.tile_keys) {
      tile_ = next_;
      locate_after(task, key);
      plan_fetches();
      for (int h = 0; h < at_.unit.num_kv_heads; ++h) attend_tile(h, key);
    }
    if (at_.unit.piece < 0) return write_results();
    write_records();
    merge_ended();
  }

 private:
  // Rows of a unit are ordered by KV head, query token and head within the group.
  const AttentionQuery& query(int row) const {
    return at_.queries[row % at_.rows_per_head / group_];
  }
  int position(int row) const { return query(row).position; }
  int head(int row) const {
    return (at_.unit.first_kv_head + row / at_.rows_per_head) * group_ + row % group_;
  }
  int num_rows() const { return at_.unit.num_kv_heads * at_.rows_per_head; }

  // f(row, query, head) for the rows of the unit's query tokens first .. last - 1.
  template <class F>
  void for_rows(int first, int last, F&& f) const {
    for (int h = 0; h < at_.unit.num_kv_heads; ++h) {
      int row = h * at_.rows_per_head + first * group_;
      for (int i = first; i < last; ++i) {
        const int first_head = (at_.unit.first_kv_head + h) * group_;
        for (int g = 0; g < group_; ++g) f(row++, at_.queries[i], first_head + g);
      }
    }
  }

  // With few rows most time goes into reading memory: tiles are then so small that one of them and
  // the next, which is fetched meanwhile, leave room in a core's cache. By the layer's shape and the
  // rows of one sequence alone, so that its results do not change with the batch.
  int keys_per_tile(bool has_few_rows) const {
    if (!has_few_rows) return kTileKeys;
    const int key_bytes = 2 * shape_.num_kv_heads * shape_.head_dim * static_cast<int>(sizeof(T));
    int num_keys = kTileKeys;
    while (num_keys > kFewestTileKeys && num_keys * key_bytes > kTileBytes) num_keys /= 2;
    return num_keys;
  }

  Place place(int task) const {
    Place at;
    at.unit = plan_.unit(task);
    at.queries = plan_.queries(at.unit);
    at.table = tensors_.block_tables +
               static_cast<int64_t>(at.queries[0].sequence) * plan_.table_width();
    at.first_position = at.queries[0].position;
    at.rows_per_head = at.unit.num_queries * group_;
    at.tile_keys = keys_per_tile(at.unit.has_few_rows);
    // Not the tiles that are before all windows: a unit begins at a whole kTileKeys.
    const int first_seen = first_visible(at.first_position) / at.tile_keys * at.tile_keys;
    at.first_key = std::max(at.unit.first_key, first_seen);
    return at;
  }

  void load_queries() {
    const int dim = shape_.head_dim;
    for_rows(0, at_.unit.num_queries, [&](int row, const AttentionQuery& query, int head) {
      const float* q = tensors_.q + query.token * tensors_.q_stride + head * dim;
      Dot::pack_row(q, dim, scratch_.queries + static_cast<size_t>(row) * steps_);
      scratch_.maxima[row] = kHidden;
      store(scratch_.weight_sums + row * kLanes, zero());
    });
    const size_t num_sums = static_cast<size_t>(num_rows()) * width_;
    std::memset(scratch_.sums, 0, num_sums * sizeof(float));
  }

  // Where the tile's keys and values lie. Keys beyond the last, and those before all windows, whose
  // blocks may be another sequence's by now, are stood in for by one that is seen: their weights
  // are zero, and its numbers are as good as any.
  void locate_keys(const Place& at, int first, TileRows* tile) const {
    const int num_keys = std::max(0, std::min(at.tile_keys, at.unit.last_key - first));
    const int padded = round_up(num_keys, kLanes);
    const int num_unseen = std::max(0, first_visible(at.first_position) - first);
    const int64_t stride = static_cast<int64_t>(shape_.num_kv_heads) * shape_.head_dim;
    const int64_t head_offset = static_cast<int64_t>(at.unit.first_kv_head) * shape_.head_dim;
    const T** k_rows = tile->rows;
    const T** v_rows = tile->rows + padded;
    const int first_seen = first + num_unseen;
    int block = first_seen / shape_.block_size, offset = first_seen % shape_.block_size;
    for (int j = num_unseen; j < num_keys; ++j) {
      const int64_t slot = static_cast<int64_t>(at.table[block]) * shape_.block_size + offset;
      k_rows[j] = tensors_.k_cache + slot * stride + head_offset;
      v_rows[j] = tensors_.v_cache + slot * stride + head_offset;
      if (++offset == shape_.block_size) {
        offset = 0;
        ++block;
      }
    }
    if (num_unseen < num_keys) {
      std::fill(k_rows, k_rows + num_unseen, k_rows[num_unseen]);
      std::fill(v_rows, v_rows + num_unseen, v_rows[num_unseen]);
    }
    for (int j = num_keys; j < padded; ++j) {
      k_rows[j] = k_rows[num_keys - 1];
      v_rows[j] = v_rows[num_keys - 1];
    }
    tile->num_keys = padded;
  }

  // The tile after the one at `key`: the unit's next, or the first of the task that comes next.
  void locate_after(int task, int key) {
    const int next_key = key + at_.tile_keys;
    next_row_size_ = at_.unit.num_kv_heads * shape_.head_dim;
    if (next_key < at_.unit.last_key) return locate_keys(at_, next_key, &next_);
    located_ = task + 1;
    next_.num_keys = 0;
    if (located_ >= plan_.num_tasks()) return;
    const Place next = place(located_);
    next_row_size_ = next.unit.num_kv_heads * shape_.head_dim;
    locate_keys(next, next.first_key, &next_);
  }

  // The next tile is fetched while this one is computed: half of it between squares of keys, half
  // between rows of values if these are read where they lie.
  void plan_fetches() {
    const bool is_shared = tensors_.k_cache == tensors_.v_cache;
    fetcher_.start(next_.rows, next_.num_keys * (is_shared ? 1 : 2), next_row_size_);
    const bool is_packed = at_.rows_per_head > kFewQueryRows;
    const int num_lines = fetcher_.num_lines();
    const int squares = (shape_.head_dim + Dot::kSquare - 1) / Dot::kSquare;  // of kLanes keys
    const int num_squares = at_.unit.num_kv_heads * tile_.num_keys / kLanes * squares;
    const int num_steps = at_.unit.num_kv_heads * tile_.num_keys / Dot::kPerUnit;
    lines_per_square_ = (num_lines / (is_packed ? 1 : 2) + num_squares - 1) / num_squares;
    lines_per_step_ = (num_lines / 2 + num_steps - 1) / num_steps;
  }

  void attend_tile(int kv_head, int first_key) {
    const int first_row = kv_head * at_.rows_per_head;
    const ptrdiff_t offset = static_cast<ptrdiff_t>(kv_head) * shape_.head_dim;
    const int num_panels = (at_.rows_per_head + kTileRows - 1) / kTileRows;
    const auto for_panels = [&](auto&& body) {
      for (int i = 0; i < num_panels; ++i) {
        const int begin = at_.rows_per_head * i / num_panels;
        const int end = at_.rows_per_head * (i + 1) / num_panels;
        const int num_keys = num_seen(first_row + end - 1, first_key);
        if (num_keys > 0) body(first_row + begin, end - begin, num_keys);
      }
    };
    for (int j = 0; j < tile_.num_keys; j += kTileColumns) {
      pack_keys(kv_head, j);
      for_panels([&](int row, int num_rows, int num_keys) {
        if (j < num_keys) multiply_keys(row, num_rows, j, num_keys);
      });
    }
    const bool is_packed = at_.rows_per_head > kFewQueryRows;
    if (is_packed) pack_values(offset);
    for_panels([&](int row, int num_rows, int num_keys) {
      float factors[kLanes];
      weigh_scores(row, num_rows, first_key, num_keys, factors);
      add_values(row, num_rows, num_keys, factors, is_packed, offset);
    });
  }

  // Keys of the tile, in whole vectors, that a row sees some of.
  int num_seen(int row, int first_key) const {
    return std::min(tile_.num_keys, round_up(position(row) + 1 - first_key, kLanes));
  }

  void pack_keys(int kv_head, int first) {
    const ptrdiff_t offset = static_cast<ptrdiff_t>(kv_head) * shape_.head_dim;
    const int last = std::min(tile_.num_keys, first + kTileColumns);
    for (int j = first; j < last; j += kLanes) {
      Dot::pack_keys(tile_.k() + j, offset, shape_.head_dim, scratch_.keys + (j - first),
                     [&] { fetcher_.fetch(lines_per_square_); });
    }
  }

  void pack_values(ptrdiff_t offset) {
    for (int j = 0; j < tile_.num_keys; j += kLanes) {
      Unit* values = scratch_.values + static_cast<size_t>(j / Dot::kPerUnit) * width_;
      shoal::pack_values<Dot>(tile_.v() + j, offset, shape_.head_dim, values);
    }
  }

  // Scores of some rows with the packed keys, which are the tile's from `first` on.
  void multiply_keys(int row, int num_rows, int first, int num_keys) {
    Product p{};
    p.a = scratch_.queries + static_cast<size_t>(row) * steps_;
    p.lda = p.steps = steps_;
    p.b = scratch_.keys;
    p.ldb = kTileColumns;
    p.c = scores(row) + first;
    p.ldc = kTileKeys;
    multiply<Dot>(num_rows, std::min(kTileVecs, (num_keys - first) / kLanes), p);
  }

  // Of a row of the KV head at hand.
  float* scores(int row) const {
    return scratch_.scores + static_cast<size_t>(row % at_.rows_per_head) * kTileKeys;
  }
  static constexpr int kWeightUnits = kTileKeys / Dot::kPerUnit;

  // Scores become weights relative to the rows' new maxima; factors: of the rows' older sums.
  void weigh_scores(int row, int num_rows, int first_key, int num_keys, float* factors) {
    const float scale = terms_.scale * kLog2E;
    const int last_key = first_key + num_keys - 1;
    const bool is_all_seen = last_key <= position(row) &&
                             first_visible(position(row + num_rows - 1)) <= first_key;
    const bool is_plain = is_all_seen && terms_.soft_cap == 0 && terms_.alibi_slopes == nullptr;
    const float factor = is_plain ? scale : 1.0f;
    float maxima[kLanes] = {};
    for (int r = 0; r < num_rows; ++r) {
      float* scores = this->scores(row + r);
      if (!is_plain) finish_scores(row + r, first_key, num_keys, scores);
      Vec top = load(scores);
      for (int j = kLanes; j < num_keys; j += kLanes) top = max(top, load(scores + j));
      const float greatest = std::max(scratch_.maxima[row + r], reduce_max(top) * factor);
      // A row that has seen nothing yet keeps weights of zero, not of NaN.
      maxima[r] = greatest == kHidden ? 0.0f : greatest;
      factors[r] = scratch_.maxima[row + r] - maxima[r];
      scratch_.maxima[row + r] = greatest;
    }
    for (int r = num_rows; r < kLanes; ++r) factors[r] = 0.0f;
    store(factors, exp2(load(factors)));
    for (int r = 0; r < num_rows; ++r) {
      weigh_row(row + r, scores(row + r), num_keys, factor, maxima[r], factors[r],
                scratch_.weights + r * kWeightUnits);
    }
  }

  void weigh_row(int row, const float* scores, int num_keys, float factor, float maximum,
                 float old_factor, Unit* weights) {
    const Vec scale = splat(factor), top = splat(maximum);
    Vec sum = load(scratch_.weight_sums + row * kLanes) * splat(old_factor);
    for (int j = 0; j < num_keys; j += kLanes) {
      const Vec weight = exp2_to_one(load(scores + j) * scale - top);
      sum = sum + weight;
      Dot::store_units(weights, j, weight);
    }
    store(scratch_.weight_sums + row * kLanes, sum);
  }

  int first_visible(int position) const {
    return shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
  }

  // Scale, cap, ALiBi and mask, to base 2.
  void finish_scores(int row, int first_key, int num_keys, float* scores) const {
    const int position = this->position(row);
    const int num_seen = std::min(num_keys, position + 1 - first_key);
    const int num_unseen = std::max(0, first_visible(position) - first_key);
    const Vec end = splat(static_cast<float>(num_seen));
    const Vec begin = splat(static_cast<float>(num_unseen));
    const float slope = terms_.alibi_slopes ? terms_.alibi_slopes[head(row)] * kLog2E : 0.0f;
    const float distance = static_cast<float>(position - first_key);
    const Vec is_hidden = splat(kHidden);
    for (int j = 0; j < num_keys; j += kLanes) {
      const Vec column = lane_numbers() + splat(static_cast<float>(j));
      Vec x = load(scores + j) * splat(terms_.scale);
      if (terms_.soft_cap != 0) {
        x = splat(terms_.soft_cap) * tanh(x * splat(1.0f / terms_.soft_cap));
      }
      x = fma(x, splat(kLog2E), (column - splat(distance)) * splat(slope));
      x = select(less(column, end), x, is_hidden);
      store(scores + j, select(less(column, begin), is_hidden, x));
    }
  }

  void add_values(int row, int num_rows, int num_keys, const float* factors, bool is_packed,
                  ptrdiff_t offset) {
    Product p{};
    p.a = scratch_.weights;
    p.lda = kWeightUnits;
    p.ldb = p.ldc = width_;
    p.steps = num_keys / Dot::kPerUnit;
    p.row_factors = factors;
    const int num_vecs = width_ / kLanes, num_parts = (num_vecs + kTileVecs - 1) / kTileVecs;
    const int num_groups = num_vecs / Dot::kVecGroup;
    for (int part = 0; part < num_parts; ++part) {
      const int begin = num_groups * part / num_parts * Dot::kVecGroup;
      const int end = num_groups * (part + 1) / num_parts * Dot::kVecGroup;
      p.b = scratch_.values + begin * kLanes;
      p.c = scratch_.sums + static_cast<size_t>(row) * width_ + begin * kLanes;
      if (is_packed) {
        multiply<Dot>(num_rows, end - begin, p);
      } else {
        multiply<Dot>(num_rows, end - begin, p,
                      ValueRows<T>{tile_.v(), offset, begin * kLanes, shape_.head_dim, &fetcher_,
                                   lines_per_step_});
      }
    }
  }

  float weight_sum(int row) const { return reduce_add(load(scratch_.weight_sums + row * kLanes)); }

  float* sums(int row) const { return scratch_.sums + static_cast<size_t>(row) * width_; }

  void write_results() {
    for_rows(0, at_.unit.num_queries, [&](int row, const AttentionQuery& query, int head) {
      write_result(query.token, head, sums(row), scratch_.maxima[row], weight_sum(row));
    });
  }

  void write_result(int token, int head, const float* sums, float maximum, float weight_sum) {
    float factor = 1.0f;
    if (terms_.sinks != nullptr) {
      const float sink = terms_.sinks[head] * kLog2E;
      const float top = std::max(maximum, sink);
      factor = std::exp2(maximum - top);
      weight_sum = weight_sum * factor + std::exp2(sink - top);
    }
    Out* out = tensors_.out + token * tensors_.out_stride + head * shape_.head_dim;
    Dot::store_row(sums, factor / weight_sum, shape_.head_dim, out);
  }

  void write_records() {
    for_rows(0, at_.unit.num_queries, [&](int row, const AttentionQuery& query, int head) {
      float* record = plan_.record(query, at_.unit.piece, head);
      const float* sums = this->sums(row);
      for (int d = 0; d < width_; d += kLanes) store(record + d, load(sums + d));
      float* ends = record + plan_.record_size() - 2;
      ends[0] = scratch_.maxima[row];
      ends[1] = weight_sum(row);
    });
  }

  // The results of those of the unit's sequences whose last piece it was.
  void merge_ended() {
    for (int first = 0, last; first < at_.unit.num_queries; first = last) {
      const int sequence = at_.queries[first].sequence;
      last = first + 1;
      while (last < at_.unit.num_queries && at_.queries[last].sequence == sequence) ++last;
      if (!plan_.is_last_piece(at_.unit, sequence)) continue;
      const int num_pieces = plan_.num_pieces(sequence);
      for_rows(first, last, [&](int, const AttentionQuery& query, int head) {
        merge(query, head, num_pieces);
      });
    }
  }

  void merge(const AttentionQuery& query, int head, int num_pieces) {
    const float* record = plan_.record(query, 0, head);
    const float* ends = record + plan_.record_size() - 2;
    const ptrdiff_t stride = plan_.record(query, 1, head) - record;  // from piece to piece
    float factors[kMaxPieces] = {};
    float top = kHidden, weight_sum = 0.0f;
    for (int i = 0; i < num_pieces; ++i) top = std::max(top, ends[i * stride]);
    for (int i = 0; i < num_pieces; ++i) factors[i] = ends[i * stride] - top;
    for (int i = 0; i < num_pieces; i += kLanes) store(factors + i, exp2(load(factors + i)));
    for (int i = 0; i < num_pieces; ++i) weight_sum += factors[i] * ends[i * stride + 1];
    float* sums = scratch_.sums;  // the unit's own are in its records
    for (int d = 0; d < width_; d += kLanes) {
      Vec sum = zero();
      for (int i = 0; i < num_pieces; ++i) {
        sum = fma(splat(factors[i]), load(record + i * stride + d), sum);
      }
      store(sums + d, sum);
    }
    write_result(query.token, head, sums, top, weight_sum);
  }

  const AttentionPlan& plan_;
  const AttentionShape& shape_;
  const AttentionTerms terms_;
  const AttentionTensors<T, Out> tensors_;
  AttentionScratch scratch_;
  const int steps_, width_, group_;
  Place at_;
  int located_ = -1;  // the task whose first tile `next_` is
  int next_row_size_ = 0;
  TileRows tile_{}, next_{};
  LineFetcher fetcher_;
  int lines_per_square_ = 0, lines_per_step_ = 0;
};

}  // namespace shoal
