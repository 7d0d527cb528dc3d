// A 32-bit word that changes, and those who wait for it to.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

namespace shoal {

class Gate {
 public:
  uint32_t read() const { return word_.load(std::memory_order_acquire); }

  void open() {
    word_.fetch_add(1, std::memory_order_seq_cst);
    if (num_asleep_.load(std::memory_order_seq_cst)) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
  }

  // Returns when the word is no longer `seen`, or at once if is_due(), which is asked after whoever
  // opens can know of the sleeper. Does not spin.
  template <class IsDue>
  void sleep(uint32_t seen, IsDue&& is_due) {
    num_asleep_.fetch_add(1, std::memory_order_seq_cst);
    while (read() == seen && !is_due()) futex(FUTEX_WAIT_PRIVATE, seen);
    num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
  }
  void sleep(uint32_t seen) {
    sleep(seen, [] { return false; });
  }

 private:
  void futex(int operation, uint32_t value) {
    syscall(SYS_futex, &word_, operation, value, nullptr, nullptr, 0);
  }

  std::atomic<uint32_t> word_{0};
  std::atomic<uint32_t> num_asleep_{0};
};

// Looks again and again, for the sake of a short wait; patience is asked for now and then.
class Spin {
 public:
  // The time since the first look.
  std::chrono::nanoseconds waited() const { return std::chrono::steady_clock::now() - start_; }
  static void pause() { _mm_pause(); }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace shoal
