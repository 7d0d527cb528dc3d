// What Python calls to pack weights, while a model is loaded.
#include "pack.h"

#include <atomic>

#include "abi.h"
#include "encode.h"
#include "model.h"
#include "team.h"

using namespace shoal;

namespace {

constexpr int kRowsOfTask = 4 * kPanel;

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

// Codes a packed bf16 weight [num_panels, depth, 32] (encode.h). out: [num_panels, depth * 48]
// bytes; codes: [num_panels]; strays: [num_panels, max_strays], of each panel its own. Returns the
// number of strays, or -1 where a panel has more: the weight is then better left as it is.
SHOAL_API int64_t shoal_encode(void* team, const void* data, int num_panels, int depth, void* out,
                               void* codes, void* strays, int max_strays) {
  std::atomic<int64_t> num_strays{0};
  std::atomic<bool> is_enough{true};
  static_cast<Team*>(team)->run([&](Member& member) {
    member.begin(num_panels);
    for (int p; (p = member.next()) >= 0 && is_enough.load(std::memory_order_relaxed);) {
      const bf16* panel = static_cast<const bf16*>(data) + static_cast<int64_t>(p) * depth * kPanel;
      uint8_t* coded = static_cast<uint8_t*>(out) + static_cast<int64_t>(p) * depth / kQuad * kQuadBytes;
      PanelCode* code = static_cast<PanelCode*>(codes) + p;
      code->first_stray = p * max_strays;
      Stray* own = static_cast<Stray*>(strays) + code->first_stray;
      if (!encode_panel(panel, depth, coded, code, own, max_strays)) is_enough = false;
      num_strays.fetch_add(code->num_strays, std::memory_order_relaxed);
    }
  });
  return is_enough ? num_strays.load() : -1;
}
