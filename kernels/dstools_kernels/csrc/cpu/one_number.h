// One number at a time: casts between E4M3, BF16, F16, E8M0 and float32, and the scale of a block.
//
// The numbers are those of block_fp8_numpy.py, to the bit, on every level:
//   scale = max(amax, floor) / 448           one IEEE division in float32
//   code  = e4m3(x / scale)                  one IEEE division, then round to nearest even
//   back  = bf16(float(code) * scale)        one multiplication, then one rounding to BF16
#pragma once

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

// Elements of the caller's buffers, at any address: a tensor inside a mapped file starts where the
// file's header ends.
typedef uint16_t Unaligned16 __attribute__((aligned(1), may_alias));
typedef uint32_t Unaligned32 __attribute__((aligned(1), may_alias));
typedef uint64_t Unaligned64 __attribute__((aligned(1), may_alias));
typedef float UnalignedFloat __attribute__((aligned(1), may_alias));

static const int64_t BLOCK = 128;  // of every DeepSeek checkpoint up to V4; other sizes run slower

template <class To, class From>
INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t blocks_of(int64_t length, int64_t block) { return (length + block - 1) / block; }

// The E4M3 code of a number up to 448: 1 sign bit, 4 exponent bits of bias 7, 3 mantissa bits.
// Nothing here has to saturate: no scale is below amax / 448 by more than its own rounding, so a
// quotient reaches 448.00003 at most, and the codes go on to 464 before the next one would be NaN.
INLINE uint32_t e4m3_from_float(float number) {
    const uint32_t bits = bit_cast<uint32_t>(number);
    const int32_t magnitude = (int32_t)(bits & 0x7fffffff);
    // Normal codes: drop 20 mantissa bits with a carry for "nearest, ties to even", and move the
    // exponent's bias from 127 to 7. The carry runs into the exponent by itself.
    const int32_t normal = ((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120 << 3);
    // Subnormal codes are multiples of 2^-9, which is what one unit in the last place of 2^14 is.
    // So the addition does the rounding and leaves the code in the low bits.
    const float aligned = bit_cast<float>(magnitude) + 16384.0f;
    const int32_t subnormal = bit_cast<int32_t>(aligned) - 0x46800000;
    const int32_t code = magnitude < 0x3c800000 ? subnormal : normal;  // 2^-6, the least normal
    return (uint32_t)code | ((bits >> 24) & 0x80);
}

// The number of a code, without its sign; the NaN code gives 480.
INLINE float magnitude_of_e4m3(uint32_t code) {
    const int32_t bits = (int32_t)(code & 0x7f) << 20;
    // A subnormal code with a one put before its mantissa is too large by exactly 2^-6. (Scaling by
    // a power of two would do without the choice, but runs into float32 subnormals: slow.)
    const float subnormal = bit_cast<float>(bits + (121 << 23)) - 0x1p-6f;
    const float normal = bit_cast<float>(bits + (120 << 23));
    return bits < (8 << 20) ? subnormal : normal;
}

INLINE float float_from_e4m3(uint32_t code) {
    uint32_t bits = bit_cast<uint32_t>(magnitude_of_e4m3(code));
    bits = (int32_t)(code & 0x7f) == 0x7f ? 0x7fc00000u : bits;
    return bit_cast<float>(bits | ((code & 0x80) << 24));
}

INLINE uint32_t bf16_from_float(float number) {
    const uint32_t bits = bit_cast<uint32_t>(number);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40;  // rounding could carry a NaN into infinity
    return (int32_t)(bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded;
}

INLINE float float_from_f16(uint32_t half) {
    const int32_t bits = (int32_t)(half & 0x7fff) << 13;
    const float subnormal = bit_cast<float>(bits + (113 << 23)) - 0x1p-14f;
    const float normal = bit_cast<float>(bits + (112 << 23));
    const float special = bit_cast<float>(bits + (224 << 23));  // infinity and NaN
    float magnitude = bits < (1 << 23) ? subnormal : normal;
    magnitude = bits >= (31 << 23) ? special : magnitude;
    return bit_cast<float>(bit_cast<uint32_t>(magnitude) | ((half & 0x8000) << 16));
}

// A power of two as its exponent byte: no sign, no zero, 255 is NaN. Source: OCP Microscaling 1.0.
INLINE float float_from_e8m0(uint32_t exponent) {
    uint32_t bits = exponent << 23;
    bits = exponent == 0 ? 0x00400000u : bits;  // 2^-127, a float32 subnormal
    bits = exponent == 255 ? 0x7fc00000u : bits;
    return bit_cast<float>(bits);
}

// How the source formats differ. Without the sign bit, bits are ordered like their numbers:
// infinity comes after every finite number and NaN after infinity: so one maximum over the bits
// finds the amax and every number that cannot be quantized.
struct Bf16 {
    typedef Unaligned16 Element;
    typedef int16_t Magnitude;
    static const int16_t NO_SIGN = 0x7fff;
    static const int32_t INFINITE = 0x7f80;
    INLINE float widen(uint32_t bits) { return bit_cast<float>(bits << 16); }
};
struct F16 {
    typedef Unaligned16 Element;
    typedef int16_t Magnitude;
    static const int16_t NO_SIGN = 0x7fff;
    static const int32_t INFINITE = 0x7c00;
    INLINE float widen(uint32_t bits) { return float_from_f16(bits); }
};
struct F32 {
    typedef Unaligned32 Element;
    typedef int32_t Magnitude;
    static const int32_t NO_SIGN = 0x7fffffff;
    static const int32_t INFINITE = 0x7f800000;
    INLINE float widen(uint32_t bits) { return bit_cast<float>(bits); }
};
enum Dtype { BF16_DTYPE = 0, F16_DTYPE = 1, F32_DTYPE = 2, E8M0_DTYPE = 3 };  // as in native.py

// Scale of a block whose amax is at least the floor already.
INLINE float scale_of(float amax, bool ue8m0) {
    const float scale = amax / 448.0f;
    if (!ue8m0) return scale;
    // The least power of two that is not below it: the exponent, and one more for any mantissa.
    const uint32_t bits = bit_cast<uint32_t>(scale);
    return bit_cast<float>((bits & 0x7f800000) + ((bits & 0x7fffff) ? 0x800000u : 0u));
}

// The least amax a scale is made of: a block of zeros must not divide zero by zero.
INLINE float floor_of(bool ue8m0) { return ue8m0 ? 1e-4f : 1e-12f; }
