// What Python calls to pack weights, while a model is loaded.
#include "pack.h"

#include "abi.h"
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
