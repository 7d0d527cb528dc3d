// Single pieces of the machinery for tests and benchmarks: a product of packed weights, and how fast
// this machine reads memory.
#include "abi.h"
#include "matrix.h"
#include "pack.h"
#include "team.h"

using namespace shoal;

namespace {

template <class W>
void multiply_rows(Team& team, const Rows<float>& x, int num_rows, const Packed<W>& weight,
                   const Rows<float>& out) {
  const int stride = weight.depth;
  std::unique_ptr<Input<W>[]> inputs(new Input<W>[static_cast<size_t>(num_rows) * stride]);
  for (int r = 0; r < num_rows; ++r) {
    for (int k = 0; k < stride; ++k) {
      from_float(&inputs[static_cast<size_t>(r) * stride + k], x.row(r)[k]);
    }
  }
  team.run([&](Member& member) {
    multiply(member, Rows<Input<W>>{inputs.get(), stride}, num_rows, weight, [&](const Tile& t) {
      for (int r = 0; r < t.num_rows; ++r) {
        float* y = out.row(t.first_row + r) + t.panel * kPanel;
        for (int v = 0; v < kPanel; v += kLanes) store(y + v, load(t.sums + r * kPanel + v));
      }
    });
  });
}

}  // namespace

// x: [num_rows, depth] fp32; out: [num_rows, 32 * num_panels], without the bias.
SHOAL_API void shoal_probe_multiply(void* team, int dtype, float* x, int num_rows,
                                    const MatrixTerms* weight, float* out) {
  Team& members = *static_cast<Team*>(team);
  const Rows<float> rows{x, weight->depth}, results{out, weight->num_panels * kPanel};
  if (dtype == kBFloat16) {
    multiply_rows(members, rows, num_rows, packed_as<bf16>(*weight), results);
  } else {
    multiply_rows(members, rows, num_rows, packed_as<float>(*weight), results);
  }
}

// One row of the embedding: y, [num_columns].
SHOAL_API void shoal_probe_row(int dtype, const MatrixTerms* weight, int row, int num_columns,
                               float* y) {
  if (dtype == kBFloat16) return unpack_row(packed_as<bf16>(*weight), row, num_columns, 1.0f, y);
  unpack_row(packed_as<float>(*weight), row, num_columns, 1.0f, y);
}

// Reads num_bytes once with all members, as a stream for each. Returns a number that depends on
// every line, so that nothing is left out.
SHOAL_API float shoal_probe_read(void* team, const void* data, int64_t num_bytes) {
  std::atomic<uint32_t> any{0};
  const char* bytes = static_cast<const char*>(data);
  static_cast<Team*>(team)->run([&](Member& member) {
    const int64_t num_lines = num_bytes / 64;
    const int64_t first = num_lines * member.index / member.size();
    const int64_t last = num_lines * (member.index + 1) / member.size();
    Vec most = zero();
    for (int64_t i = first; i < last; ++i) {
      _mm_prefetch(bytes + i * 64 + 4096, _MM_HINT_T0);
      for (int v = 0; v < 16; v += kLanes) {
        most = max(most, load(reinterpret_cast<const float*>(bytes + i * 64) + v));
      }
    }
    const float found = reduce_max(most);
    uint32_t bits;
    std::memcpy(&bits, &found, sizeof bits);
    any.fetch_xor(bits, std::memory_order_relaxed);
  });
  return static_cast<float>(any.load() & 0xff);
}
