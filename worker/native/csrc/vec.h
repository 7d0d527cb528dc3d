// Vectors of fp32 numbers, as wide as the instruction set this file is compiled for.
//
// Owns the only intrinsics that other headers need for element-wise work: loads and stores of fp32
// and bf16 (whole vectors, or the first n lanes), arithmetic, reductions, and the transcendental
// functions of activations and softmax. Knows nothing of tensors. Compiled once per variant:
// AVX-512 (16 lanes, with or without bf16 dot products) or AVX2 with FMA (8 lanes).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SHOAL_AVX512 1
#if defined(__AVX512BF16__)
#define SHOAL_BF16_DOT 1
#endif
#elif !(defined(__AVX2__) && defined(__FMA__))
#error "compile with AVX-512 (F, BW, DQ, VL) or with AVX2 and FMA"
#endif

namespace shoal {

// The upper half of an fp32 number.
struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &wide, sizeof y);
  return y;
}

// Rounds to nearest, ties to even; a NaN stays one.
inline bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline void from_float(float* y, float x) { *y = x; }
inline void from_float(bf16* y, float x) { *y = to_bf16(x); }

// Fetches the cache line at p into the second-level cache. In assembly, since GCC drops calls of
// functions that do nothing but prefetch.
inline void fetch_line(const void* p) {
  asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p)));
}

#if SHOAL_AVX512

constexpr int kLanes = 16;
using Vec = __m512;
using IntVec = __m512i;
using Mask = __mmask16;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Mask first_lanes(int n) { return static_cast<Mask>((1u << n) - 1u); }

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }

inline Vec widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline Vec load(const bf16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const bf16* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store(float* p, Vec x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

inline __m256i narrow(Vec x) {
#if SHOAL_BF16_DOT
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const IntVec bits = _mm512_castps_si512(x);
  const IntVec is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const IntVec bias = _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff));
  const IntVec rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const Mask is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0)));
#endif
}
inline void store(bf16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x));
}
inline void store(bf16* p, Vec x, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(x)); }

inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec abs(Vec x) { return _mm512_abs_ps(x); }
inline float reduce_add(Vec x) { return _mm512_reduce_add_ps(x); }
inline float reduce_max(Vec x) { return _mm512_reduce_max_ps(x); }

inline Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
// a where the mask is set, else b.
inline Vec select(Mask mask, Vec a, Vec b) { return _mm512_mask_blend_ps(mask, b, a); }
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  return _mm512_or_ps(magnitude, _mm512_and_ps(sign, splat(-0.0f)));
}
inline Vec round_even(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n; n: whole numbers. Underflows to zero and overflows to infinity.
inline Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
// 0, 1, 2, ...
inline Vec lane_numbers() {
  return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}
// Swaps lanes 2i and 2i + 1.
inline Vec swap_pairs(Vec x) { return _mm512_permute_ps(x, 0xb1); }
// Lanes 0, 0, 1, 1, ... of the lower half.
inline Vec double_lanes(Vec x) {
  const IntVec order = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(order, x);
}
// x * 2^n for the n of `shifted` = n + 1.5 * 2^23, where both x and the result are normal numbers;
// zero where the mask is not set.
inline Vec raise(Mask mask, Vec x, Vec shifted) {
  const IntVec exponents = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(
      _mm512_maskz_add_epi32(mask, _mm512_castps_si512(x), exponents));
}
// Also where either is a NaN.
inline Mask not_below(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
// Changes the sign of even lanes.
inline Vec negate_even(Vec x) {
  return _mm512_xor_ps(x, _mm512_castsi512_ps(_mm512_set1_epi64(0x80000000)));
}

#else

constexpr int kLanes = 8;
using Vec = __m256;
using IntVec = __m256i;
using Mask = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline IntVec first_lanes(int n) {
  const IntVec lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes);
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }

inline Vec widen(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Vec load(const bf16* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const bf16* p, int n) {
  alignas(16) bf16 part[kLanes] = {};
  std::memcpy(part, p, n * sizeof(bf16));
  return load(part);
}

inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline void store(float* p, Vec x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x); }

inline __m128i narrow(Vec x) {
  const IntVec bits = _mm256_castps_si256(x);
  const IntVec is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const IntVec bias = _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff));
  const IntVec rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const IntVec is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const IntVec safe = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
  const IntVec packed = _mm256_packus_epi32(safe, safe);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
inline void store(bf16* p, Vec x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }
inline void store(bf16* p, Vec x, int n) {
  alignas(16) bf16 part[kLanes];
  store(part, x);
  std::memcpy(p, part, n * sizeof(bf16));
}

inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec abs(Vec x) { return _mm256_andnot_ps(splat(-0.0f), x); }
inline float reduce_add(Vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float reduce_max(Vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
// a where the mask is set, else b.
inline Vec select(Mask mask, Vec a, Vec b) { return _mm256_blendv_ps(b, a, mask); }
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  return _mm256_or_ps(magnitude, _mm256_and_ps(sign, splat(-0.0f)));
}
inline Vec round_even(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n; n: whole numbers. Zero below n = -252, infinity above n = 254.
inline Vec scale_by_power(Vec x, Vec n) {
  // In two halves, each of which is the exponent of a normal number.
  const Vec clamped = min(max(n, splat(-252.0f)), splat(254.0f));
  const IntVec whole = _mm256_cvtps_epi32(clamped);
  const IntVec half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const IntVec one = _mm256_set1_epi32(127);
  const Vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
  const Vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, one), 23));
  return x * a * b;
}
// 0, 1, 2, ...
inline Vec lane_numbers() { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }
// Swaps lanes 2i and 2i + 1.
inline Vec swap_pairs(Vec x) { return _mm256_permute_ps(x, 0xb1); }
// Lanes 0, 0, 1, 1, ... of the lower half.
inline Vec double_lanes(Vec x) {
  return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
// x * 2^n for the n of `shifted` = n + 1.5 * 2^23, where both x and the result are normal numbers;
// zero where the mask is not set.
inline Vec raise(Mask mask, Vec x, Vec shifted) {
  const IntVec exponents = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  const IntVec y = _mm256_add_epi32(_mm256_castps_si256(x), exponents);
  return _mm256_and_ps(_mm256_castsi256_ps(y), mask);
}
// Also where either is a NaN.
inline Mask not_below(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
// Changes the sign of even lanes.
inline Vec negate_even(Vec x) {
  return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_set1_epi64x(0x80000000)));
}

#endif

// 2^f for |f| <= 0.5: the minimax polynomial of degree 6, relative error 2e-9 before rounding.
inline Vec exp2_of_fraction(Vec f) {
  Vec y = splat(1.5345812003e-04f);
  y = fma(y, f, splat(1.3399931219e-03f));
  y = fma(y, f, splat(9.6184889571e-03f));
  y = fma(y, f, splat(5.5503287770e-02f));
  y = fma(y, f, splat(2.4022646891e-01f));
  y = fma(y, f, splat(6.9314720574e-01f));
  return fma(y, f, splat(1.0f));
}

// 2^x, relative error below 1e-7; 0 for -infinity, infinity from 128 on. A NaN stays one.
inline Vec exp2(Vec x) {
  x = min(splat(200.0f), max(splat(-200.0f), x));  // a NaN passes as the second operand
  const Vec n = round_even(x);
  return scale_by_power(exp2_of_fraction(x - n), n);
}

// The same for x <= 0, as softmax has it, but 0 below 2^-125: half the work, since adding what is
// large rounds, and an exponent is added as an integer.
inline Vec exp2_to_one(Vec x) {
  const Vec large = splat(12582912.0f);  // 1.5 * 2^23
  const Vec shifted = x + large;
  const Vec f = x - (shifted - large);
  return raise(not_below(x, splat(-125.0f)), exp2_of_fraction(f), shifted);
}

// e^x, relative error below 2e-7; a NaN stays one.
inline Vec exp(Vec x) {
  x = min(splat(100.0f), max(splat(-110.0f), x));
  const Vec n = round_even(x * splat(1.44269504f));
  // x - n ln 2, with ln 2 in two parts so that the difference is exact.
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  return scale_by_power(exp2_of_fraction(r * splat(1.44269504f)), n);
}

inline Vec sigmoid(Vec x) { return splat(1.0f) / (splat(1.0f) + exp(zero() - x)); }

// Relative error below 4e-7, also near zero, where 1 - 2 / (e^2x + 1) would cancel.
inline Vec tanh(Vec x) {
  const Vec magnitude = abs(x);
  const Vec far = splat(1.0f) - splat(2.0f) / (exp(magnitude + magnitude) + splat(1.0f));
  const Vec square = x * x;
  Vec near = splat(-5.70498872745e-3f);
  near = fma(near, square, splat(2.06390887954e-2f));
  near = fma(near, square, splat(-5.37397155531e-2f));
  near = fma(near, square, splat(1.33314422036e-1f));
  near = fma(near, square, splat(-3.33332819422e-1f));
  near = fma(near * square, x, x);
  return select(less(magnitude, splat(0.625f)), near, with_sign_of(far, x));
}

// The normal distribution's integral up to x, within 1.5e-7 (Abramowitz & Stegun 7.1.26).
inline Vec normal_cdf(Vec x) {
  const Vec z = abs(x) * splat(0.70710678f);
  const Vec t = splat(1.0f) / fma(splat(0.3275911f), z, splat(1.0f));
  Vec y = splat(1.061405429f);
  y = fma(y, t, splat(-1.453152027f));
  y = fma(y, t, splat(1.421413741f));
  y = fma(y, t, splat(-0.284496736f));
  y = fma(y, t, splat(0.254829592f));
  const Vec tail = splat(0.5f) * y * t * exp(zero() - z * z);
  return select(less(x, zero()), tail, splat(1.0f) - tail);
}

}  // namespace shoal
