// A team at work on nothing but counting, with a member that is away now and then: for tests only.
#include <atomic>
#include <chrono>
#include <thread>

#include "abi.h"
#include "team.h"

using namespace shoal;

// Phases of equal tasks, each of which takes task_us and is then noted in counts.
struct ShoalTestPhases {
  int32_t num_threads, num_calls, num_phases, num_tasks;
  int32_t is_together;  // Team::run, else run_past_absent
  int32_t is_shared;    // tasks by Member::next_shared
  int32_t task_us;
  int32_t away_us;      // the last member in every away_every-th task of its own, max_away times
  int32_t away_every, max_away;
  int32_t* counts;      // [num_calls, num_phases, num_tasks]
  // Results.
  int32_t num_away;
  int32_t num_too_early;   // tasks that found the phase before them unfinished
  double longest_call_s;   // of the caller, to the end of the last phase
};

namespace {

using Clock = std::chrono::steady_clock;

void be_busy(int us) {
  const auto end = Clock::now() + std::chrono::microseconds(us);
  while (Clock::now() < end) _mm_pause();
}

bool is_finished(const int32_t* counts, int num_tasks) {
  for (int i = 0; i < num_tasks; ++i) {
    if (counts[i] == 0) return false;
  }
  return true;
}

}  // namespace

SHOAL_API void shoal_test_phases(ShoalTestPhases* test) {
  ShoalTestPhases& t = *test;
  Team team(t.num_threads);
  std::atomic<int> num_too_early{0};
  int num_own = 0;  // of the last member
  for (int call = 0; call < t.num_calls; ++call) {
    int32_t* counts = t.counts + static_cast<int64_t>(call) * t.num_phases * t.num_tasks;
    const auto body = [&](Member& m) {
      const auto start = Clock::now();
      for (int phase = 0; phase < t.num_phases; ++phase) {
        int32_t* own = counts + static_cast<int64_t>(phase) * t.num_tasks;
        m.begin(t.num_tasks);
        for (int task; (task = t.is_shared ? m.next_shared() : m.next()) >= 0;) {
          const bool is_early = phase > 0 && !is_finished(own - t.num_tasks, t.num_tasks);
          be_busy(t.task_us);
          if (m.index == t.num_threads - 1 && t.num_away < t.max_away &&
              ++num_own % t.away_every == 0) {
            ++t.num_away;
            std::this_thread::sleep_for(std::chrono::microseconds(t.away_us));
          }
          if (t.is_shared && !m.claim()) continue;
          ++own[task];
          num_too_early += is_early;
        }
      }
      const std::chrono::duration<double> elapsed = Clock::now() - start;
      if (m.index == 0) t.longest_call_s = std::max(t.longest_call_s, elapsed.count());
    };
    t.is_together ? team.run(body) : team.run_past_absent(body);
  }
  t.num_too_early = num_too_early;
}
