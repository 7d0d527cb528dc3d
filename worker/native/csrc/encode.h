// Codes bf16 panels as bf12.h reads them. Called once a weight, while a model is loaded.
//
// A panel's codes are the eight neighbouring values of the exponent's upper bits that cover most of
// a sample of its numbers, or, where that covers more, seven and zero's. Written as short loops over
// bytes, which compilers turn into vectors.
#pragma once

#include <cstring>

#include "microkernel.h"

namespace shoal {

namespace detail {

constexpr int kExponents = 128;  // of seven bits
constexpr int kAllDepth = 512;   // of panels below it all numbers are looked at
constexpr int kSampleStep = 8;   // of others, one pair of so many numbers of depth
constexpr int kQuadNumbers = kQuad * kPanel;

inline int exponent(bf16 x) { return x.bits >> 8 & 127; }

// Neighbouring values from `first` on, and perhaps zero.
struct Window {
  int first;
  bool has_zero;
  int size() const { return has_zero ? kCodes - 1 : kCodes; }
  bool covers(int exponent) const {
    return (exponent == 0 && has_zero) || (exponent >= first && exponent < first + size());
  }
};

inline Window choose_window(const bf16* panel, int depth) {
  int counts[kExponents] = {};
  for (int k = 0; k < depth; k += depth < kAllDepth ? 2 : kSampleStep) {
    for (int i = 0; i < 2 * kPanel; ++i) ++counts[exponent(panel[k * kPanel + i])];
  }
  Window best{1, true};
  int most = -1;
  for (const bool has_zero : {false, true}) {
    Window window{1, has_zero};
    for (; window.first + window.size() <= kExponents; ++window.first) {
      int covered = has_zero ? counts[0] : 0;
      for (int i = 0; i < window.size(); ++i) covered += counts[window.first + i];
      if (covered <= most) continue;
      most = covered;
      best = window;
    }
  }
  return best;
}

// One quad. Returns whether it has strays, for which the first code stands in.
inline bool encode_quad(const bf16* numbers, const Window& window, uint8_t* out) {
  uint8_t low[kQuadNumbers], high[kQuadNumbers], codes[kQuadNumbers];
  for (int i = 0; i < kQuadNumbers; ++i) low[i] = static_cast<uint8_t>(numbers[i].bits);
  for (int i = 0; i < kQuadNumbers; ++i) high[i] = static_cast<uint8_t>(numbers[i].bits >> 8);
  const uint8_t first = static_cast<uint8_t>(window.first), size = window.size();
  const uint8_t shift = window.has_zero, never_zero = window.has_zero ? 0 : 255;
  uint8_t all = 255;
  for (int i = 0; i < kQuadNumbers; ++i) {
    const uint8_t exponent = high[i] & 127, sign = (high[i] & 128) >> 4;
    const uint8_t place = exponent - first;
    const uint8_t inside = place < size ? 255 : 0;
    const uint8_t coded = inside | ((exponent | never_zero) == 0 ? 255 : 0);
    const uint8_t code = (place + shift) & inside;
    low[i] &= coded;
    codes[i] = (sign | code) & coded;
    all &= coded;
  }
  constexpr int kPairNumbers = kQuadNumbers / 2;
  uint8_t pairs[kPairNumbers];
  for (int i = 0; i < kPairNumbers; ++i) pairs[i] = codes[i] | codes[kPairNumbers + i] << 4;
  for (int group = 0; group < 8; ++group) {
    uint8_t* at = out + place_in_line(group) * 8;
    std::memcpy(at, low + group * 8, 8);
    std::memcpy(at + 64, low + kPairNumbers + group * 8, 8);
    std::memcpy(at + 128, pairs + group * 8, 8);
  }
  return all != 255;
}

}  // namespace detail

// Chooses a panel's codes. Returns how many strays it has with them. panel: [depth / 2][32][2].
inline int plan_panel(const bf16* panel, int depth, PanelCode* code) {
  const detail::Window window = detail::choose_window(panel, depth);
  const int zeros = window.has_zero;
  for (int i = 0; i < kCodes; ++i) {
    code->high[i] = static_cast<uint8_t>(i < zeros ? 0 : window.first + i - zeros);
    code->high[kCodes + i] = code->high[i] | 128;
  }
  int num_strays = 0;
  for (int i = 0; i < depth * kPanel; ++i) num_strays += !window.covers(detail::exponent(panel[i]));
  return num_strays;
}

// Codes a panel that was planned. strays: room for as many as it has.
inline void encode_panel(const bf16* panel, int depth, uint8_t* out, PanelCode* code,
                         Stray* strays) {
  const bool has_zero = code->high[0] == 0;
  const detail::Window window{code->high[has_zero], has_zero};
  code->num_strays = 0;
  for (int k = 0; k < depth; k += kQuad, out += kQuadBytes) {
    const bf16* numbers = panel + k * kPanel;
    if (!detail::encode_quad(numbers, window, out)) continue;
    for (int i = 0; i < detail::kQuadNumbers; ++i) {
      if (window.covers(detail::exponent(numbers[i]))) continue;
      const int pair = i / (2 * kPanel), column = i / 2 % kPanel;
      strays[code->num_strays++] = {k + 2 * pair + i % 2, static_cast<uint16_t>(column),
                                    numbers[i]};
    }
  }
}

}  // namespace shoal
