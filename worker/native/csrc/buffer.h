// Memory between phases: rows of zeros that are kept from step to step.
#pragma once

#include <stdlib.h>

#include <memory>
#include <new>

#include "gemm.h"

namespace shoal {

// Zeroed memory that grows, without what was in it. What was never written stays zero: the padding
// of rows counts on it.
template <class T>
class Buffer {
 public:
  // Rows of at least `columns`, each on cache lines of its own, an odd number of them so that rows
  // do not fall into the same sets of a cache.
  Rows<T> rows(int num_rows, int columns) {
    constexpr int kPerLine = 64 / sizeof(T);
    const int stride = ((columns + kPerLine - 1) / kPerLine | 1) * kPerLine;
    return {reserve(static_cast<size_t>(num_rows) * stride), stride};
  }

  T* reserve(size_t count) {
    if (count > capacity_) {
      capacity_ = 0;  // also when there is no memory: the next step asks again
      memory_.reset();
      memory_.reset(static_cast<char*>(calloc(count * sizeof(T) + 64, 1)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = count;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }

 private:
  struct Free {
    void operator()(char* p) const { free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t capacity_ = 0;
};

}  // namespace shoal
