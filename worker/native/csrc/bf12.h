// bf16 weights in twelve bits each, without loss.
//
// A trained weight's exponents lie close together: what sixteen of them do not cover is one number
// in ten thousand. Of each number the low byte (the exponent's last bit and the mantissa) is kept as
// it is, and the high byte (the sign and the rest of the exponent) becomes a code of four bits,
// looked up in its panel's table. The few numbers beyond are strays: another number stands in for
// them, and the difference is added to the panel's sums one by one. A single row then reads three
// quarters of the bytes, and memory is what it waits for. After DFloat11 (Zhang et al. 2025, arXiv
// 2504.11651), which codes exponents with varying length. Owns the layout and its decoding; encode.h
// writes it, gemm.h and pack.h read it.
//
// Four k of a panel are three lines: the low bytes of two pairs of k, then codes, those of the first
// pair in the lower halves of bytes. Within a line, eight bytes are four columns of a pair; such
// groups stand in the order 0, 4, 1, 5, 2, 6, 3, 7, since bytes are interleaved within 16 of a
// vector.
#pragma once

#include <cstdint>

#include "vec.h"

namespace shoal {

constexpr int kQuad = 4;            // numbers of depth that are coded together
constexpr int kQuadBytes = 3 * 64;  // of 32 columns
constexpr int kCodes = 8;           // of either sign

// How a panel's numbers are read.
struct PanelCode {
  uint8_t high[2 * kCodes];  // the high byte of each code, those of negative numbers last
  int32_t first_stray;
  int32_t num_strays;
  // What stands in the panel for strays: the first code's least number.
  bf16 stand_in() const { return {static_cast<uint16_t>(high[0] << 8)}; }
};

struct Stray {
  int32_t k;
  uint16_t column;  // of the panel
  bf16 value;
};

static_assert(sizeof(PanelCode) == 24 && sizeof(Stray) == 8);  // coding.py makes room for them

// The place in its line of the group of eight bytes that comes at `group`.
constexpr int place_in_line(int group) { return group % 4 * 2 + group / 4; }

// One number of a panel, a stray's being its stand-in. p: the panel's first byte.
inline bf16 decode(const uint8_t* p, const PanelCode& code, int k, int column) {
  const uint8_t* quad = p + k / kQuad * kQuadBytes;
  const int pair = k % kQuad / 2, i = column * 2 + k % 2;
  const int at = place_in_line(i / 8) * 8 + i % 8;
  const int high = code.high[quad[128 + at] >> (4 * pair) & 15];
  return {static_cast<uint16_t>(high << 8 | quad[64 * pair + at])};
}

#if SHOAL_AVX512

inline IntVec load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline IntVec table_of(const PanelCode& code) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code.high)));
}
inline IntVec look_up(IntVec table, IntVec codes) {
  return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}
inline IntVec upper_codes(IntVec codes) { return _mm512_srli_epi16(codes, 4); }
inline IntVec first_columns(IntVec low, IntVec high) { return _mm512_unpacklo_epi8(low, high); }
inline IntVec last_columns(IntVec low, IntVec high) { return _mm512_unpackhi_epi8(low, high); }

#else

inline IntVec load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline IntVec table_of(const PanelCode& code) {
  return _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(code.high)));
}
inline IntVec look_up(IntVec table, IntVec codes) {
  return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
}
inline IntVec upper_codes(IntVec codes) { return _mm256_srli_epi16(codes, 4); }
inline IntVec first_columns(IntVec low, IntVec high) { return _mm256_unpacklo_epi8(low, high); }
inline IntVec last_columns(IntVec low, IntVec high) { return _mm256_unpackhi_epi8(low, high); }

#endif

// A pair of k of 32 columns, in the order and form of a panel of bf16: kSecond says which of a
// quad's two.
template <bool kSecond, int kVecs>
inline void decode_pair(const uint8_t* quad, IntVec table, IntVec (&pairs)[kVecs]) {
  constexpr int kHalf = kVecs / 2, kBytes = 64 / kHalf;
#pragma GCC unroll 2
  for (int i = 0; i < kHalf; ++i) {
    const IntVec codes = load_bytes(quad + 128 + i * kBytes);
    const IntVec high = look_up(table, kSecond ? upper_codes(codes) : codes);
    const IntVec low = load_bytes(quad + (kSecond ? 64 : 0) + i * kBytes);
    pairs[i] = first_columns(low, high);
    pairs[kHalf + i] = last_columns(low, high);
  }
}

}  // namespace shoal
