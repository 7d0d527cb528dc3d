// What Python calls to pack weights, while a model is loaded.
#include "pack.h"

#include <sys/mman.h>

#include <atomic>

#include "abi.h"
#include "encode.h"
#include "model.h"
#include "team.h"

using namespace shoal;

namespace {

constexpr int kRowsOfTask = 4 * kPanel;
constexpr int64_t kGivenBackBytes = 8 << 20;  // at a time
constexpr uintptr_t kPageBytes = 2 << 20;     // of the greatest pages, so that none is cut

// Pages within the range are taken from the process, and would be zeros if they were read again.
void give_back(void* first, void* last) {
  const auto begin = (reinterpret_cast<uintptr_t>(first) + kPageBytes - 1) / kPageBytes * kPageBytes;
  const auto end = reinterpret_cast<uintptr_t>(last) / kPageBytes * kPageBytes;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

template <class W>
void pack(Team* team, const void* data, int64_t row_stride, int64_t column_stride, int num_rows,
          int num_columns, const int32_t* columns, void* out, int depth) {
  const Matrix<W> m{static_cast<const W*>(data), row_stride, column_stride, num_rows, num_columns};
  W* packed = static_cast<W*>(out);
  if (team == nullptr) return pack_rows(m, columns, 0, num_rows, packed, depth);
  team->run([&](Member& member) {
    member.begin((num_rows + kRowsOfTask - 1) / kRowsOfTask);
    for (int task; (task = member.next()) >= 0;) {
      const int first = task * kRowsOfTask;
      pack_rows(m, columns, first, std::min(num_rows, first + kRowsOfTask), packed, depth);
    }
  });
}

}  // namespace

// data: [num_rows, num_columns] with strides in elements; columns: of the packed weight, for each
// row; out: the packed weight, [panels, depth, 32], zeros where nothing was packed yet. On the
// team's threads; null: on the caller's, and others may pack other rows meanwhile.
SHOAL_API void shoal_pack_rows(void* team, int dtype, const void* data, int64_t row_stride,
                               int64_t column_stride, int num_rows, int num_columns,
                               const int32_t* columns, void* out, int depth) {
  const auto run = dtype == kBFloat16 ? pack<bf16> : pack<float>;
  run(static_cast<Team*>(team), data, row_stride, column_stride, num_rows, num_columns, columns, out,
      depth);
}

// Codes a packed bf16 weight [num_panels, depth, 32] (encode.h), whose memory is given back on the
// way: nothing is held twice. out: [num_panels, depth * 48] bytes; codes: [num_panels]; strays:
// [num_panels, max_strays], of each panel its own. Returns 0, and leaves all as it is, where a panel
// has more strays: the weight is then better left so.
SHOAL_API int shoal_encode(void* team, void* data, int num_panels, int depth, void* out,
                           void* codes, void* strays, int max_strays) {
  bf16* numbers = static_cast<bf16*>(data);
  const int64_t panel_size = static_cast<int64_t>(depth) * kPanel;
  PanelCode* code = static_cast<PanelCode*>(codes);
  std::atomic<bool> is_enough{true};
  static_cast<Team*>(team)->run([&](Member& member) {
    member.begin(num_panels);
    for (int p; (p = member.next()) >= 0;) {
      code[p].first_stray = p * max_strays;
      if (plan_panel(numbers + p * panel_size, depth, code + p) > max_strays) is_enough = false;
    }
    if (!is_enough) return;  // all members have planned
    const int64_t fitting = kGivenBackBytes / (panel_size * static_cast<int64_t>(sizeof(bf16)));
    const int even = num_panels / (4 * member.size());
    const int run = std::max(1, std::min(static_cast<int>(fitting), even));
    member.begin((num_panels + run - 1) / run);
    for (int task; (task = member.next()) >= 0;) {
      const int first = task * run, last = std::min(num_panels, first + run);
      for (int p = first; p < last; ++p) {
        uint8_t* coded = static_cast<uint8_t*>(out) + panel_size * p / kQuad / kPanel * kQuadBytes;
        Stray* own = static_cast<Stray*>(strays) + code[p].first_stray;
        encode_panel(numbers + p * panel_size, depth, coded, code + p, own);
      }
      give_back(numbers + first * panel_size, numbers + last * panel_size);
    }
  });
  return is_enough;
}
