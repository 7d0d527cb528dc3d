// The greatest column of each row of a product whose results are kept nowhere: greedy sampling.
//
// Members offer vectors of columns as they compute them, in any order; of equal ones the first column
// counts, and NaN is never greater than anything. Owns a place for each member and row.
#pragma once

#include <limits>
#include <vector>

#include "buffer.h"

namespace shoal {

class LargestColumns {
 public:
  // Column numbers are floats on the way.
  static constexpr int kMostColumns = 1 << 24;

  explicit LargestColumns(int num_members) : buffers_(num_members), places_(num_members) {}

  // Raises: std::bad_alloc.
  void reserve(int num_rows) {
    for (size_t m = 0; m < buffers_.size(); ++m) {
      places_[m] = buffers_[m].rows(num_rows, 2 * kLanes);
    }
  }

  void start(int num_rows, int num_columns) {
    num_columns_ = static_cast<float>(num_columns);
    for (const Rows<float>& places : places_) {
      for (int r = 0; r < num_rows; ++r) {
        store(places.row(r), splat(kLeast));
        store(places.row(r) + kLanes, zero());
      }
    }
  }

  // Columns `column` and on of a row; what lies beyond the last column is passed over.
  void offer(int member, int row, int column, Vec y) const {
    float* place = places_[member].row(row);
    const Vec best = load(place), best_column = load(place + kLanes);
    const Vec columns = lane_numbers() + splat(static_cast<float>(column));
    y = select(less(columns, splat(num_columns_)), y, splat(kLeast));
    const Vec first = select(equal(y, best), min(columns, best_column), best_column);
    const auto is_more = less(best, y);
    store(place, select(is_more, y, best));
    store(place + kLanes, select(is_more, columns, first));
  }

  // Of all that were offered; 0 if none was more than minus infinity.
  int64_t column(int row) const {
    float best = kLeast, column = 0;
    for (const Rows<float>& places : places_) {
      const float* place = places.row(row);
      for (int i = 0; i < kLanes; ++i) {
        const float y = place[i], at = place[kLanes + i];
        if (y > best || (y == best && at < column)) {
          best = y;
          column = at;
        }
      }
    }
    return static_cast<int64_t>(column);
  }

 private:
  static constexpr float kLeast = -std::numeric_limits<float>::infinity();

  std::vector<Buffer<float>> buffers_;
  std::vector<Rows<float>> places_;
  float num_columns_ = 0;
};

}  // namespace shoal
