// A team of threads that works through the phases of one call together.
//
// Owns its threads and the barrier between phases; knows nothing of what is computed. Workers sleep
// in the kernel between calls, so nothing spins while the engine waits. Within a call members meet at
// barriers: a member looks for some tens of microseconds, then sleeps, so that a core taken by
// another process costs that core's share and no more. A phase's tasks are dealt out in one
// contiguous range a member (sequential memory for each), and whoever is done takes from the others.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace shoal {

inline void futex_wait(std::atomic<uint32_t>* word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
inline void futex_wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// A 32-bit word that changes, and those who wait for it to.
class Gate {
 public:
  uint32_t read() const { return word_.load(std::memory_order_acquire); }

  void open() {
    word_.fetch_add(1, std::memory_order_seq_cst);
    if (num_asleep_.load(std::memory_order_seq_cst)) futex_wake_all(&word_);
  }

  // Returns when the word is no longer `seen`; looks for `spin_us` before it sleeps.
  void wait(uint32_t seen, int spin_us) {
    const auto start = std::chrono::steady_clock::now();
    const auto limit = std::chrono::microseconds(spin_us);
    do {
      for (int i = 0; i < 16; ++i) {
        if (read() != seen) return;
        _mm_pause();
      }
    } while (std::chrono::steady_clock::now() - start < limit);
    num_asleep_.fetch_add(1, std::memory_order_seq_cst);
    while (read() == seen) futex_wait(&word_, seen);
    num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
  }

 private:
  std::atomic<uint32_t> word_{0};
  std::atomic<uint32_t> num_asleep_{0};
};

class Team;

// One thread's view of its team, valid within a call.
class Member {
 public:
  Member(Team* team, int index) : index(index), team_(team) {}
  int size() const;
  // Meets all members, then opens a phase of `num_tasks`; all pass the same number.
  void begin(int num_tasks);
  // The next task of the phase for this member, or -1 when all are taken.
  int next();

  const int index;

 private:
  Team* team_;
};

// Used by one calling thread at a time, which is member 0, and only in the process that made it: a
// fork has none of the threads.
class Team {
 public:
  // Raises: std::system_error when the system gives no more threads, std::bad_alloc.
  explicit Team(int size) : size_(size), ranges_(new Range[size]) {
    try {
      for (int i = 1; i < size; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
      dismiss();  // a thread that nobody joins would end the process
      throw;
    }
  }

  ~Team() { dismiss(); }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls body(Member&) on every member; returns when all are done.
  template <class Body>
  void run(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    context_ = const_cast<void*>(static_cast<const void*>(&body));
    job_ = [](void* context, Member& member) { (*static_cast<Plain*>(context))(member); };
    if (size_ > 1) start_.open();
    Member caller(this, 0);
    job_(context_, caller);
    meet(0);
  }

 private:
  friend class Member;
  using Job = void (*)(void*, Member&);
  static constexpr int kSpinUs = 50;

  struct alignas(64) Range {
    std::atomic<int> next{0};
    int end = 0;
  };

  void dismiss() {
    job_ = nullptr;
    start_.open();
    for (auto& worker : workers_) worker.join();
  }

  void work(int index) {
    uint32_t seen = 0;
    while (true) {
      start_.wait(seen, 0);
      ++seen;
      if (job_ == nullptr) return;
      Member member(this, index);
      job_(context_, member);
      meet(0);
    }
  }

  // The last to come deals out the next phase's tasks and lets all go on.
  void meet(int num_tasks) {
    if (size_ == 1) return deal(num_tasks);
    const uint32_t seen = passed_.read();
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      num_arrived_.store(0, std::memory_order_relaxed);
      deal(num_tasks);
      passed_.open();
    } else {
      passed_.wait(seen, kSpinUs);
    }
  }

  void deal(int num_tasks) {
    for (int i = 0; i < size_; ++i) {
      ranges_[i].next.store(static_cast<int>(int64_t{num_tasks} * i / size_), std::memory_order_relaxed);
      ranges_[i].end = static_cast<int>(int64_t{num_tasks} * (i + 1) / size_);
    }
  }

  int take(int index) {
    for (int i = 0; i < size_; ++i) {
      Range& range = ranges_[(index + i) % size_];
      if (range.next.load(std::memory_order_relaxed) >= range.end) continue;
      const int task = range.next.fetch_add(1, std::memory_order_relaxed);
      if (task < range.end) return task;
    }
    return -1;
  }

  const int size_;
  std::unique_ptr<Range[]> ranges_;
  std::vector<std::thread> workers_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  Gate start_;
  Gate passed_;
  alignas(64) std::atomic<int> num_arrived_{0};
};

inline int Member::size() const { return team_->size(); }
inline void Member::begin(int num_tasks) { team_->meet(num_tasks); }
inline int Member::next() { return team_->take(index); }

}  // namespace shoal
