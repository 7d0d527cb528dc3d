// A team of threads that works through the phases of one call together.
//
// Owns its threads and what keeps phases apart; knows nothing of what is computed. Workers sleep in
// the kernel between calls, so nothing spins while the engine waits. A phase's tasks are dealt out
// in one contiguous range a member (sequential memory for each), and whoever is done takes from the
// others.
//
// A phase ends when its tasks are done, not when all members have come: on a busy machine a member
// is often away for a while, its core taken by another process, and would hold all the others at
// every barrier. Whoever waits does the task that such a member holds as well, where the phase allows
// it, and the first to have it done is the one who did it; then all go on, and the member finds out
// when it is back (helping, as in wait-free algorithms: Herlihy 1991). Other tasks are waited for:
// briefly by looking, then asleep, so that a core taken by another process costs that core's share
// and no more.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "gate.h"

namespace shoal {

class Team;

// One thread's view of its team, valid within a call.
class Member {
 public:
  int size() const;
  // Opens a phase of `num_tasks` when the last one is done; all members open the same phases.
  void begin(int num_tasks);
  // The next task of the phase, this member's alone; -1 when all tasks are done.
  int next();
  // The same, but others may do the task too: it must change nothing that others see unless claim()
  // is true.
  int next_shared();
  // Whether the task at hand is this member's to finish: true for one member only, and from then on.
  bool claim();

  const int index;

 private:
  friend class Team;
  Member(Team* team, int index, uint32_t phase) : index(index), team_(team), phase_(phase) {}

  Team* team_;
  uint32_t phase_;
  int task_ = -1;      // at hand
  int helped_ = -1;    // the member that took it, if it is another
  int num_taken_ = 0;  // of this phase
  std::chrono::steady_clock::time_point began_{};
};

// Used by one calling thread at a time, which is member 0, and only in the process that made it: a
// fork has none of the threads.
class Team {
  using Clock = std::chrono::steady_clock;

 public:
  // Raises: std::system_error when the system gives no more threads, std::bad_alloc.
  explicit Team(int size) : size_(size), ranges_(new Range[size]), hands_(new Hand[size]) {
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

  // Calls body(Member&) on every member; returns when all are done. No member is ahead of another
  // by more than a phase.
  template <class Body>
  void run(Body&& body) {
    run_all(body, true);
  }

  // The same, but members that are away are left behind. Body must look at what phases change only
  // while it has a task: elsewhere a member may be at an old phase without knowing.
  template <class Body>
  void run_past_absent(Body&& body) {
    run_all(body, false);
  }

 private:
  friend class Member;
  using Job = void (*)(void*, Member&);
  static constexpr std::chrono::microseconds kSpin{50};
  // Beyond the mean time of a task, which is kUnknown to who has done none, others' are done as well.
  static constexpr std::chrono::microseconds kGrace{2}, kUnknown{20};
  static constexpr uint32_t kClosed = 1u << 31;

  // Tasks next .. end - 1 of a phase; one word, so that none is taken of another phase.
  struct alignas(64) Range {
    std::atomic<uint64_t> word{0};
    static constexpr int kBits = 22;
    static constexpr uint64_t kMask = (1 << kBits) - 1;
    static uint64_t make(uint32_t phase, int next, int end) {
      return uint64_t{phase} << 2 * kBits | uint64_t(end) << kBits | uint64_t(next);
    }
    static bool is_of(uint64_t word, uint32_t phase) {
      return (word ^ uint64_t{phase} << 2 * kBits) >> 2 * kBits == 0;
    }
    static int next(uint64_t word) { return static_cast<int>(word & kMask); }
    static int end(uint64_t word) { return static_cast<int>(word >> kBits & kMask); }
  };

  // What a member has of a phase.
  enum State : uint64_t {
    kEmpty,   // nothing, and it has found nothing more to take
    kTaking,  // perhaps a task
    kKept,    // a task that it will finish
    kShared,  // a task that others may do first
    kLost,    // one that another has claimed
  };
  struct alignas(64) Hand {
    std::atomic<uint64_t> word{0};
    static uint64_t make(State state, uint32_t phase, int task = 0) {
      return uint64_t{phase} << 32 | uint64_t(task) << 3 | state;
    }
    static State state(uint64_t word) { return static_cast<State>(word & 7); }
    static uint32_t phase(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
    static int task(uint64_t word) { return static_cast<int>(word >> 3 & Range::kMask); }
  };

  template <class Body>
  void run_all(Body&& body, bool is_strict) {
    using Plain = std::remove_reference_t<Body>;
    context_ = const_cast<void*>(static_cast<const void*>(&body));
    job_ = [](void* context, Member& member) { (*static_cast<Plain*>(context))(member); };
    is_strict_ = is_strict;
    first_phase_ = phase_.read();
    door_.store(0, std::memory_order_release);
    if (size_ > 1) start_.open();
    take_part(0);
    // Who has not come by now need not; the others read what the caller may change next.
    const uint32_t seen = left_.read();
    if (door_.fetch_or(kClosed, std::memory_order_acq_rel) == 0) return;
    const Spin spin;
    while (door_.load(std::memory_order_acquire) != kClosed) {
      if (spin.waited() > kSpin) return left_.sleep(seen, [&] { return door_.load() == kClosed; });
      Spin::pause();
    }
  }

  void dismiss() {
    is_dismissed_ = true;
    start_.open();
    for (auto& worker : workers_) worker.join();
  }

  void work(int index) {
    uint32_t seen = 0;
    while (true) {
      start_.sleep(seen);
      seen = start_.read();
      if (is_dismissed_) return;
      uint32_t inside = door_.load(std::memory_order_acquire);
      while (!(inside & kClosed) && !door_.compare_exchange_weak(inside, inside + 1)) continue;
      if (inside & kClosed) continue;
      take_part(index);
      if (door_.fetch_sub(1, std::memory_order_acq_rel) - 1 == kClosed) left_.open();
    }
  }

  void take_part(int index) {
    Member member(this, index, first_phase_);
    job_(context_, member);
    member.begin(0);
  }

  void begin(Member& m, int num_tasks) {
    const uint32_t ended = m.phase_++;
    m.num_taken_ = 0;
    if (size_ == 1) return deal(m.phase_, num_tasks);
    hands_[m.index].word.store(Hand::make(kEmpty, ended), std::memory_order_seq_cst);
    while (phase_.read() == ended) {
      await_end(ended, m.index, Clock::duration::max());
      uint32_t opened = ended;
      if (dealt_.compare_exchange_strong(opened, m.phase_, std::memory_order_acq_rel)) {
        deal(m.phase_, num_tasks);
        phase_.open();
      }
    }
    m.began_ = Clock::now();
  }

  void deal(uint32_t phase, int num_tasks) {
    for (int i = 0; i < size_; ++i) {
      const int next = static_cast<int>(int64_t{num_tasks} * i / size_);
      const int end = static_cast<int>(int64_t{num_tasks} * (i + 1) / size_);
      ranges_[i].word.store(Range::make(phase, next, end), std::memory_order_release);
    }
  }

  int next(Member& m, State state) {
    m.helped_ = -1;
    if (size_ == 1) return m.task_ = take(0, m.phase_);
    std::atomic<uint64_t>& hand = hands_[m.index].word;
    hand.store(Hand::make(kTaking, m.phase_), std::memory_order_release);
    for (int i = 0; i < size_; ++i) {
      m.task_ = take((m.index + i) % size_, m.phase_);
      if (m.task_ < 0) continue;
      ++m.num_taken_;
      hand.store(Hand::make(state, m.phase_, m.task_), std::memory_order_release);
      return m.task_;
    }
    hand.store(Hand::make(kEmpty, m.phase_), std::memory_order_seq_cst);
    auto patience = Clock::duration::max();
    if (state == kShared) {
      patience = kGrace + (m.num_taken_ > 0 ? (Clock::now() - m.began_) / m.num_taken_ : kUnknown);
    }
    while (!await_end(m.phase_, m.index, patience)) {
      if (help(m)) return m.task_;
    }
    return -1;
  }

  int take(int owner, uint32_t phase) {
    std::atomic<uint64_t>& range = ranges_[owner].word;
    uint64_t word = range.load(std::memory_order_acquire);
    while (Range::is_of(word, phase) && Range::next(word) < Range::end(word)) {
      if (range.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) {
        return Range::next(word);
      }
    }
    return -1;
  }

  // Whether there is a task at hand now that another has taken and not claimed.
  bool help(Member& m) {
    for (int i = 1; i < size_; ++i) {
      const int other = (m.index + i) % size_;
      const uint64_t word = hands_[other].word.load(std::memory_order_acquire);
      if (Hand::state(word) != kShared || Hand::phase(word) != m.phase_) continue;
      m.helped_ = other;
      m.task_ = Hand::task(word);
      return true;
    }
    return false;
  }

  bool claim(const Member& m) {
    if (size_ == 1) return true;
    std::atomic<uint64_t>& own = hands_[m.index].word;
    const uint64_t kept = Hand::make(kKept, m.phase_, m.task_);
    if (own.load(std::memory_order_relaxed) == kept) return true;
    uint64_t shared = Hand::make(kShared, m.phase_, m.task_);
    if (m.helped_ < 0) return own.compare_exchange_strong(shared, kept);
    own.store(kept);  // before it leaves the other hand: a task that is not done is in one of them
    if (hands_[m.helped_].word.compare_exchange_strong(shared, Hand::make(kLost, m.phase_))) {
      return true;
    }
    own.store(Hand::make(kEmpty, m.phase_));
    return false;
  }

  // Waits until the phase is done or has passed; false: not within `patience`.
  bool await_end(uint32_t phase, int self, Clock::duration patience) {
    const Spin spin;
    while (phase_.read() == phase && !is_done(phase, self)) {
      const auto waited = spin.waited();
      if (waited > patience && can_help(phase, self)) return false;
      if (waited > kSpin) phase_.sleep(phase, [&] { return is_done(phase, self); });
      for (int i = 0; i < 4; ++i) Spin::pause();
    }
    return true;
  }

  bool is_done(uint32_t phase, int self) const {
    for (int i = 0; i < size_; ++i) {
      const uint64_t range = ranges_[i].word.load(std::memory_order_acquire);
      if (!Range::is_of(range, phase) || Range::next(range) < Range::end(range)) return false;
      if (i == self) continue;
      const uint64_t hand = hands_[i].word.load(std::memory_order_acquire);
      const bool is_here = Hand::phase(hand) == phase, has_none = Hand::state(hand) == kEmpty;
      if (is_strict_ ? !is_here || !has_none : is_here && !has_none && Hand::state(hand) != kLost) {
        return false;
      }
    }
    return true;
  }

  bool can_help(uint32_t phase, int self) const {
    for (int i = 0; i < size_; ++i) {
      const uint64_t hand = hands_[i].word.load(std::memory_order_acquire);
      if (i != self && Hand::state(hand) == kShared && Hand::phase(hand) == phase) return true;
    }
    return false;
  }

  const int size_;
  std::unique_ptr<Range[]> ranges_;
  std::unique_ptr<Hand[]> hands_;
  std::vector<std::thread> workers_;
  // Of the call, set before its door opens.
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool is_strict_ = true;
  uint32_t first_phase_ = 0;
  std::atomic<bool> is_dismissed_{false};
  Gate start_, left_;
  Gate phase_;  // the number of the phase that is open
  alignas(64) std::atomic<uint32_t> dealt_{0};  // of the last that was dealt, or is being
  alignas(64) std::atomic<uint32_t> door_{kClosed};  // workers within the call
};

inline int Member::size() const { return team_->size(); }
inline void Member::begin(int num_tasks) { team_->begin(*this, num_tasks); }
inline int Member::next() { return team_->next(*this, Team::kKept); }
inline int Member::next_shared() { return team_->next(*this, Team::kShared); }
inline bool Member::claim() { return team_->claim(*this); }

}  // namespace shoal
