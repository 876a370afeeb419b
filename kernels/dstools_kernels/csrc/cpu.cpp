// Block FP8 on the CPU: quantize, dequantize, recover, and the sums that prove a result. C ABI, libc
// only.
//
// The numbers are those of block_fp8_numpy.py, to the bit, on every level:
//   scale = max(amax, floor) / 448           one IEEE division in float32
//   code  = e4m3(x / scale)                  one IEEE division, then round to nearest even
//   back  = bf16(float(code) * scale)        one multiplication, then one rounding to BF16
//
// Each kernel is one plain body, written as loops that compilers vectorise, and compiled once per
// instruction set; the caller passes the level to run. What goes between BF16 and FP8 has a second
// body, a table look-up for AVX-512 VBMI: see "The table kernel".
//
// What the build must hold to: -ffp-contract=off (a fused multiply-add rounds once where the
// definition rounds twice), never -ffast-math, no flushing of subnormals. -fno-trapping-math is
// wanted: it changes no value, and without it GCC will not vectorise arithmetic under a condition.
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define API extern "C" __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

// Elements of the caller's buffers. They may lie at any address: a tensor inside a mapped file
// starts where its header ends.
typedef uint16_t Unaligned16 __attribute__((aligned(1), may_alias));
typedef uint32_t Unaligned32 __attribute__((aligned(1), may_alias));
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

// ---- One number at a time -----------------------------------------------------------------------

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

// A power of two as its exponent byte, OCP Microscaling Formats 1.0: no sign, no zero, 255 is NaN.
INLINE float float_from_e8m0(uint32_t exponent) {
    uint32_t bits = exponent << 23;
    bits = exponent == 0 ? 0x00400000u : bits;  // 2^-127, a float32 subnormal
    bits = exponent == 255 ? 0x7fc00000u : bits;
    return bit_cast<float>(bits);
}

// How the source formats differ. Without its sign bit each orders like the number it stands for,
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

// ---- Quantize: the plain body -------------------------------------------------------------------

// Index of the first infinity or NaN in a block that holds one.
template <class Source>
static int64_t first_not_finite(const typename Source::Element* block, int64_t rows, int64_t cols,
                                int64_t stride) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t col = 0; col < cols; col++) {
            const typename Source::Magnitude sign_dropped =
                (typename Source::Magnitude)block[row * stride + col] & Source::NO_SIGN;
            if (sign_dropped >= Source::INFINITE) return row * stride + col;
        }
    return -1;
}

template <class Source>
INLINE typename Source::Magnitude amax_bits(const typename Source::Element* block, int64_t rows,
                                            int64_t cols, int64_t stride) {
    typedef typename Source::Magnitude Magnitude;
    Magnitude lanes[BLOCK] = {};  // one maximum a column: no sideways step until the end
    for (int64_t row = 0; row < rows; row++)
        for (int64_t start = 0; start < cols; start += BLOCK) {
            const typename Source::Element* from = block + row * stride + start;
            const int64_t width = least(BLOCK, cols - start);
            for (int64_t i = 0; i < width; i++) {
                const Magnitude magnitude = (Magnitude)from[i] & Source::NO_SIGN;
                lanes[i] = magnitude > lanes[i] ? magnitude : lanes[i];
            }
        }
    Magnitude most = 0;
    for (int64_t i = 0; i < BLOCK; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

// Quantize one block; 0 where it holds infinity or NaN.
template <class Source>
INLINE bool quantize_block(const typename Source::Element* block, int64_t rows, int64_t cols,
                           int64_t stride, uint8_t* codes, UnalignedFloat* scale_inv, bool ue8m0) {
    const int32_t bits = amax_bits<Source>(block, rows, cols, stride);
    if (bits >= Source::INFINITE) return false;
    const float amax = Source::widen((uint32_t)bits), floor = floor_of(ue8m0);
    const float scale = scale_of(amax > floor ? amax : floor, ue8m0);
    *scale_inv = scale;
    for (int64_t row = 0; row < rows; row++) {
        const typename Source::Element* __restrict from = block + row * stride;
        uint8_t* __restrict to = codes + row * stride;
        for (int64_t i = 0; i < cols; i++)
            to[i] = (uint8_t)e4m3_from_float(Source::widen(from[i]) / scale);
    }
    return true;
}

// Quantize [rows, cols]; the index of an infinity or NaN, or -1 where there is none.
template <class Source>
INLINE int64_t quantize_body(const void* weight, int64_t rows, int64_t cols, uint8_t* codes,
                             UnalignedFloat* scale_inv, bool ue8m0, int64_t block_size) {
    const typename Source::Element* from = (const typename Source::Element*)weight;
    for (int64_t row = 0; row < rows; row += block_size)
        for (int64_t col = 0; col < cols; col += block_size) {
            const int64_t height = least(block_size, rows - row), at = row * cols + col;
            const int64_t width = least(block_size, cols - col);
            // the same call twice: with a constant width the loops need no remainder
            const bool finite =
                width == BLOCK
                    ? quantize_block<Source>(from + at, height, BLOCK, cols, codes + at, scale_inv, ue8m0)
                    : quantize_block<Source>(from + at, height, width, cols, codes + at, scale_inv, ue8m0);
            if (!finite) return at + first_not_finite<Source>(from + at, height, width, cols);
            scale_inv++;
        }
    return -1;
}

INLINE int64_t quantize_plain(const void* weight, int dtype, int64_t rows, int64_t cols,
                              uint8_t* codes, UnalignedFloat* scale_inv, bool ue8m0,
                              int64_t block_size) {
    if (dtype == BF16_DTYPE)
        return quantize_body<Bf16>(weight, rows, cols, codes, scale_inv, ue8m0, block_size);
    if (dtype == F16_DTYPE)
        return quantize_body<F16>(weight, rows, cols, codes, scale_inv, ue8m0, block_size);
    return quantize_body<F32>(weight, rows, cols, codes, scale_inv, ue8m0, block_size);
}

// ---- Dequantize, widen, narrow ------------------------------------------------------------------

INLINE void dequantize_run(const uint8_t* __restrict codes, int64_t count, float scale,
                           Unaligned16* __restrict out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = (uint16_t)bf16_from_float(float_from_e4m3(codes[i]) * scale);
}

INLINE void dequantize_run(const uint8_t* __restrict codes, int64_t count, float scale,
                           UnalignedFloat* __restrict out) {
    for (int64_t i = 0; i < count; i++) out[i] = float_from_e4m3(codes[i]) * scale;
}

template <class Out>
INLINE void dequantize_plain(const uint8_t* codes, int64_t rows, int64_t cols,
                             const UnalignedFloat* scale_inv, int64_t block_rows,
                             int64_t block_cols, Out* out) {
    for (int64_t row = 0; row < rows; row++) {
        const UnalignedFloat* scale = scale_inv + row / block_rows * blocks_of(cols, block_cols);
        for (int64_t col = 0; col < cols; col += block_cols, scale++) {
            const int64_t width = least(block_cols, cols - col), at = row * cols + col;
            if (width == BLOCK) dequantize_run(codes + at, BLOCK, *scale, out + at);
            else dequantize_run(codes + at, width, *scale, out + at);
        }
    }
}

INLINE void widen_plain(const void* data, int dtype, int64_t count,
                        UnalignedFloat* __restrict out) {
    const Unaligned16* __restrict halves = (const Unaligned16*)data;
    const uint8_t* __restrict bytes = (const uint8_t*)data;
    if (dtype == BF16_DTYPE)
        for (int64_t i = 0; i < count; i++) out[i] = Bf16::widen(halves[i]);
    else if (dtype == F16_DTYPE)
        for (int64_t i = 0; i < count; i++) out[i] = F16::widen(halves[i]);
    else if (dtype == F32_DTYPE)
        memcpy(out, data, (size_t)count * sizeof *out);
    else
        for (int64_t i = 0; i < count; i++) out[i] = float_from_e8m0(bytes[i]);
}

INLINE void narrow_plain(const UnalignedFloat* __restrict data, int64_t count,
                         Unaligned16* __restrict out) {
    for (int64_t i = 0; i < count; i++) out[i] = (uint16_t)bf16_from_float(data[i]);
}

// ---- Proof and measure --------------------------------------------------------------------------

// 1 where a code is not what rounding to nearest gives for this weight; see outside_bound in
// block_fp8.py. In double, where code * scale is exact: float32 would round at the very bound.
INLINE int64_t is_outside(float weight, uint32_t code, double scale) {
    const int32_t magnitude_code = (int32_t)(code & 0x7f);
    const double magnitude = magnitude_of_e4m3(code);
    // the power of two in magnitude, at least 2^-6, over 16: half of ulp = 2^(e-3)
    const int32_t exponent = magnitude_code & 0x78;
    const float half_ulp =
        bit_cast<float>(((exponent > 8 ? exponent : 8) << 20) + ((120 - 4) << 23));
    const double size = __builtin_fabs((double)weight);
    // with the code's sign moved onto the weight, both signs are one case
    const double along = code & 0x80 ? -(double)weight : (double)weight;
    const double value = magnitude * scale, error = __builtin_fabs(along - value);
    // below a power of two, codes lie half as far apart as above it
    const int narrow = ((magnitude_code & 7) == 0) & (exponent > 8) & (along < value);
    const double bound = scale * (double)half_ulp * (narrow ? 0.5 : 1.0) + size * 0x1p-23;
    const double infinity = __builtin_inf();
    const int near = (error <= bound) & (bound < infinity);
    const double limit = 448.0 * scale;
    const int saturated =
        (magnitude_code == 0x7e) & (along > limit) & (limit >= 0) & (size < infinity);
    return !((near | saturated) & (magnitude_code != 0x7f));
}

INLINE int64_t outside_bound_plain(const UnalignedFloat* weight, const uint8_t* codes, int64_t rows,
                                   int64_t cols, const UnalignedFloat* scale_inv,
                                   int64_t block_rows, int64_t block_cols, int64_t* first) {
    int64_t total = 0;
    *first = -1;
    for (int64_t row = 0; row < rows; row++) {
        const UnalignedFloat* scale = scale_inv + row / block_rows * blocks_of(cols, block_cols);
        for (int64_t col = 0; col < cols; col += block_cols, scale++) {
            const int64_t width = least(block_cols, cols - col), at = row * cols + col;
            int64_t outside = 0;
            if (width == BLOCK)
                for (int64_t i = 0; i < BLOCK; i++)
                    outside += is_outside(weight[at + i], codes[at + i], *scale);
            else
                for (int64_t i = 0; i < width; i++)
                    outside += is_outside(weight[at + i], codes[at + i], *scale);
            if (outside && *first < 0) {
                *first = at;
                while (!is_outside(weight[*first], codes[*first], *scale)) ++*first;
            }
            total += outside;
        }
    }
    return total;
}

// Sums over b - a: squares of it, squares of a, itself, and its largest magnitude, into out[0..3].
// Element i goes to lane i % 16, and the lanes are added up in order at the end: every level, and
// numpy, then makes the same additions and so the same double.
static const int64_t LANES = 16;
INLINE void difference_plain(const UnalignedFloat* __restrict a, const UnalignedFloat* __restrict b,
                             int64_t count, double* out) {
    double square_diff[LANES] = {}, square_a[LANES] = {}, diff[LANES] = {}, most[LANES] = {};
    for (int64_t start = 0; start < count; start += LANES) {
        const int64_t width = least(LANES, count - start);
        for (int64_t i = 0; i < width; i++) {
            const double one = a[start + i], delta = (double)b[start + i] - one;
            const double size = __builtin_fabs(delta);
            square_diff[i] += delta * delta;
            square_a[i] += one * one;
            diff[i] += delta;
            most[i] = size > most[i] ? size : most[i];
        }
    }
    for (int64_t i = 1; i < LANES; i++) {
        square_diff[0] += square_diff[i];
        square_a[0] += square_a[i];
        diff[0] += diff[i];
        most[0] = most[i] > most[0] ? most[i] : most[0];
    }
    out[0] = square_diff[0];
    out[1] = square_a[0];
    out[2] = diff[0];
    // a comparison loses a NaN, a sum of squares keeps it
    out[3] = square_diff[0] == square_diff[0] ? most[0] : square_diff[0];
}

// Index of the first of `count` elements in which all bits of `mask` are set, or -1: the exponent's
// bits make that infinity or NaN, all bits but the sign NaN in E4M3.
template <class Element>
INLINE int64_t first_with_all(const void* data, Element mask, int64_t count) {
    static const int64_t RUN = 1024;
    const Element* element = (const Element*)data;
    for (int64_t start = 0; start < count; start += RUN) {
        const int64_t width = least(RUN, count - start);
        Element found = 0;
        for (int64_t i = 0; i < width; i++) found |= (Element)((element[start + i] & mask) == mask);
        if (found)
            for (int64_t i = start;; i++)
                if ((element[i] & mask) == mask) return i;
    }
    return -1;
}

INLINE int64_t first_with_all_plain(const void* data, int itemsize, uint32_t mask, int64_t count) {
    if (itemsize == 1) return first_with_all<uint8_t>(data, (uint8_t)mask, count);
    if (itemsize == 2) return first_with_all<Unaligned16>(data, (Unaligned16)mask, count);
    return first_with_all<Unaligned32>(data, mask, count);
}

// ---- Recover codes and scales from what they dequantized to: see lattice.py ---------------------
//
// Powers of two change no significand, so of the products of a scale and all codes only those of
// 8 significands differ: a block with more than 8 mantissas was never FP8. Those that it has, lifted
// into the binade that ends in amax, stand for the whole block when a scale is looked for.

static const int64_t SIGNIFICANDS = 8;  // of E4M3: 1, 1.125 .. 1.875

struct Lifted {
    int64_t count;
    uint32_t amax;                  // BF16, as are all of these
    uint32_t values[SIGNIFICANDS];  // above amax / 2 and up to amax, one of each mantissa
};

// The mantissas of non-zeros as a set of 128 bits, and the largest magnitude.
struct Seen {
    uint32_t words[4];
    int32_t most;
    int64_t count;  // of mantissas; left at 0 by seen_in()
};

INLINE Seen seen_in(const Unaligned16* __restrict from, int64_t count) {
    uint32_t first = 0, second = 0, third = 0, fourth = 0;
    int32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t magnitude = from[i] & 0x7fff, word = magnitude & 0x60;
        const uint32_t bit = (uint32_t)(magnitude != 0) << (magnitude & 0x1f);
        first |= bit & -(uint32_t)(word == 0x00);
        second |= bit & -(uint32_t)(word == 0x20);
        third |= bit & -(uint32_t)(word == 0x40);
        fourth |= bit & -(uint32_t)(word == 0x60);
        most = magnitude > most ? magnitude : most;
    }
    return {{first, second, third, fourth}, most, 0};
}

// What a block has, or as much of it as shows that it has too many mantissas.
INLINE Seen seen_in_block(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride) {
    Seen seen = {};
    for (int64_t row = 0; row < rows && seen.count <= SIGNIFICANDS; row++) {
        const Unaligned16* from = block + row * stride;
        // The block to the right comes next. Asking for memory past the end is harmless.
        for (int64_t i = 0; i < BLOCK; i += 32) __builtin_prefetch(from + BLOCK + i, 0, 2);
        // the same call twice: with a constant count the loop needs no remainder
        const Seen more = cols == BLOCK ? seen_in(from, BLOCK) : seen_in(from, cols);
        seen.most = more.most > seen.most ? more.most : seen.most;
        for (int i = 0; i < 4; i++) {
            uint32_t news = more.words[i] & ~seen.words[i];
            seen.words[i] |= news;
            for (; news; news &= news - 1) seen.count++;
        }
    }
    return seen;
}

INLINE Lifted lifted_of(const Seen& seen) {
    Lifted found = {0, (uint32_t)seen.most, {}};
    const uint32_t binade = found.amax & 0x7f80, top = found.amax & 0x7f;
    for (uint32_t mantissa = 0; mantissa < 128; mantissa++)
        if (seen.words[mantissa >> 5] >> (mantissa & 31) & 1)
            found.values[found.count++] = binade + mantissa - (mantissa > top ? 0x80 : 0);
    return found;
}

// The float32 scales s with bf16(code * s) == value, as their bits, which order like they do. Both
// roundings are monotone, so they are an interval.
struct Interval {
    uint32_t low, high;
};

INLINE Interval scales_of(float code, uint32_t value) {
    // the least and the greatest float32 that round to this BF16: a tie goes to an even one
    const uint32_t reach = (value & 1) ? 0x7fff : 0x8000;
    const float least = bit_cast<float>((value << 16) - reach);
    const float greatest = bit_cast<float>((value << 16) + reach);
    // A quotient is two steps from the end at most: half of one for its own rounding, one for the
    // product's.
    Interval scales = {bit_cast<uint32_t>(least / code) - 2, bit_cast<uint32_t>(greatest / code) + 2};
    while (bit_cast<float>(scales.low) * code < least) scales.low++;
    while (bit_cast<float>(scales.high) * code > greatest) scales.high--;
    return scales;
}

// The scale under which amax has code `top` and every other value has one too; 0 where none is.
INLINE float scale_under(uint32_t top, const Lifted& lifted) {
    Interval scales = scales_of(magnitude_of_e4m3(top), lifted.amax);
    for (int64_t i = 0; i < lifted.count; i++) {
        // Scales within a 2^-7th of each other and a value within 2^-8 of its product leave one
        // code: they lie at least a 15th apart.
        const float quotient = Bf16::widen(lifted.values[i]) / bit_cast<float>(scales.low);
        const float code = magnitude_of_e4m3(e4m3_from_float(quotient));
        const Interval its = scales_of(code, lifted.values[i]);
        scales.low = its.low > scales.low ? its.low : scales.low;
        scales.high = its.high < scales.high ? its.high : scales.high;
        if (scales.low > scales.high) return 0;
    }
    const uint32_t rule = bit_cast<uint32_t>(Bf16::widen(lifted.amax) / 448.0f);
    const uint32_t power = (scales.low + 0x7fffff) & 0x7f800000;  // the least from `low` on
    if (rule >= scales.low && rule <= scales.high) return bit_cast<float>(rule);
    if (power <= scales.high) return bit_cast<float>(power);
    return bit_cast<float>(scales.low + (scales.high - scales.low) / 2);
}

// Write codes; 1 where each times `scale` is its element again, to the bit.
INLINE bool encode_run(const Unaligned16* __restrict from, int64_t count, float scale,
                       float reciprocal, uint8_t* __restrict codes) {
    uint32_t differences = 0;
    for (int64_t i = 0; i < count; i++) {
        // the product may be off by a 2^-23rd, a right code is off by 2^-8 at most
        const uint32_t code = e4m3_from_float(Bf16::widen(from[i]) * reciprocal);
        codes[i] = (uint8_t)code;
        const uint32_t size = bit_cast<uint32_t>(magnitude_of_e4m3(code) * scale);
        const uint32_t back = (size + 0x7fff + ((size >> 16) & 1)) >> 16;
        differences |= back ^ (from[i] & 0x7fff);
    }
    return differences == 0;
}

INLINE bool encode_block(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride,
                         float scale, uint8_t* codes) {
    const float reciprocal = 1.0f / scale;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * stride;
        // the same call twice: with a constant count the loop needs no remainder
        if (!(cols == BLOCK ? encode_run(block + at, BLOCK, scale, reciprocal, codes + at)
                            : encode_run(block + at, cols, scale, reciprocal, codes + at)))
            return false;
    }
    return true;
}

// The two passes over a block, by loops; TableSteps has them by look-up.
struct PlainSteps {
    INLINE Seen look(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride) {
        return seen_in_block(block, rows, cols, stride);
    }
    // Write codes; whether each times `scale` is its element again, to the bit.
    INLINE bool encode(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride, float,
                       float scale, uint8_t* codes) {
        return encode_block(block, rows, cols, stride, scale, codes);
    }
};

// Recover one block; its scale, or 0.
template <class Steps>
INLINE float recover_block(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride,
                           uint8_t* codes, bool powers_only) {
    const Seen seen = Steps::look(block, rows, cols, stride);
    if (seen.count > SIGNIFICANDS || seen.most >= Bf16::INFINITE) return 0;
    const Lifted lifted = lifted_of(seen);
    const float amax = Bf16::widen(lifted.amax), floor = floor_of(powers_only);
    // below the floor the rule's scale is known, whatever code that leaves for amax
    if (amax < floor) {
        const float scale = scale_of(floor, powers_only);
        if (Steps::encode(block, rows, cols, stride, floor, scale, codes)) return scale;
    }
    if (amax < 0x1p-90f) return 0;  // so that no product below is a float32 subnormal
    if (powers_only) {
        const float scale = scale_of(amax, true);
        return Steps::encode(block, rows, cols, stride, amax, scale, codes) ? scale : 0;
    }
    for (uint32_t top = 0x7e; top > 0x76; top--) {  // 448 .. 240
        const float scale = scale_under(top, lifted);
        if (scale > 0 && Steps::encode(block, rows, cols, stride, amax, scale, codes)) return scale;
    }
    return 0;
}

// Recover [rows, cols]; the number of the first block for which there is nothing, or -1.
template <class Steps>
INLINE int64_t recover_body(const Unaligned16* weight, int64_t rows, int64_t cols, uint8_t* codes,
                            UnalignedFloat* scale_inv, bool powers_only, int64_t block_size) {
    int64_t number = 0;
    for (int64_t row = 0; row < rows; row += block_size)
        for (int64_t col = 0; col < cols; col += block_size, number++) {
            const int64_t height = least(block_size, rows - row), at = row * cols + col;
            const int64_t width = least(block_size, cols - col);
            const float scale =
                recover_block<Steps>(weight + at, height, width, cols, codes + at, powers_only);
            if (scale == 0) return number;
            scale_inv[number] = scale;
        }
    return -1;
}

INLINE int64_t recover_plain(const Unaligned16* weight, int64_t rows, int64_t cols, uint8_t* codes,
                             UnalignedFloat* scale_inv, bool powers_only, int64_t block_size) {
    return recover_body<PlainSteps>(weight, rows, cols, codes, scale_inv, powers_only, block_size);
}

// ---- The table kernel ---------------------------------------------------------------------------
//
// BF16 has 7 mantissa bits and a block has one scale, so a block divides only 128 different
// significands. With e the exponent of an element and m its mantissa, wherever the code is normal
//     code = 8 e + T[m]   (mod 256)
// because multiplying by a power of two commutes with both roundings, and in E4M3 raises the code
// by 8, the carry out of the mantissa included. T comes from 128 true divisions a block. The true
// code lies in 0..0x7e, so arithmetic modulo 256 loses nothing.
// Elements below a threshold have subnormal codes or none; they take the division.
#if defined(__x86_64__)

#if defined(__clang__)
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#else
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#endif
#define TARGET(names) __attribute__((target(names)))
#define VBMI TARGET(AVX512 ",avx512vbmi")

// e4m3_from_float() on sixteen numbers; the code is the low byte of each lane.
VBMI INLINE __m512i e4m3_from_floats(__m512 numbers) {
    const __m512i bits = _mm512_castps_si512(numbers);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    __m512i code = _mm512_add_epi32(magnitude, _mm512_set1_epi32(0x7ffff - (960 << 20)));
    code = _mm512_srli_epi32(_mm512_add_epi32(code, odd), 20);
    const __m512i subnormal = _mm512_castps_si512(
        _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(16384.0f)));
    const __mmask16 small = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
    code = _mm512_mask_mov_epi32(code, small, subnormal);
    // take the sign bit from the number and the rest from the code
    return _mm512_ternarylogic_epi32(code, _mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80), 0xD8);
}

// The codes of 32 BF16 numbers by division.
VBMI INLINE __m256i divide32(__m512i numbers, __m512 scale) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(numbers));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(numbers, 1));
    const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(low, 16));
    const __m512 second = _mm512_castsi512_ps(_mm512_slli_epi32(high, 16));
    const __m128i front = _mm512_cvtepi32_epi8(e4m3_from_floats(_mm512_div_ps(first, scale)));
    const __m128i back = _mm512_cvtepi32_epi8(e4m3_from_floats(_mm512_div_ps(second, scale)));
    return _mm256_set_m128i(back, front);
}

struct CodeTable {
    __m512i low, high;  // T of the mantissas 0..63 and 64..127
    uint32_t normal;    // magnitudes from here on have a normal code; twice, in both 16-bit halves
    uint32_t zero;      // magnitudes below this one have code 0; twice
    float scale;
};

VBMI INLINE CodeTable code_table(float amax, float scale) {
    // One binade below amax every significand's quotient is finite and a normal code: amax / scale
    // is above 224 and at most 448.00003. The floor under amax keeps the exponent far above 1.
    const int32_t exponent = (int32_t)(bit_cast<uint32_t>(amax) >> 23) - 1;
    alignas(64) uint8_t codes[BLOCK];
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int32_t first = 0; first < BLOCK; first += 16) {
        const __m512i mantissa = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
        const __m512i bits = _mm512_add_epi32(_mm512_set1_epi32(exponent << 23),
                                              _mm512_slli_epi32(mantissa, 16));
        const __m512 quotient = _mm512_div_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(scale));
        _mm_store_si128((__m128i*)(codes + first), _mm512_cvtepi32_epi8(e4m3_from_floats(quotient)));
    }
    const __m512i offset = _mm512_set1_epi8((char)(exponent << 3));
    CodeTable table;
    table.low = _mm512_sub_epi8(_mm512_load_si512(codes), offset);
    table.high = _mm512_sub_epi8(_mm512_load_si512(codes + 64), offset);
    // With 2^k the power of two in the quotient of mantissa 0, an element of exponent e has a
    // quotient from 2^(k + e - exponent) up to, not including, 4 times that.
    const float least_quotient = bit_cast<float>(exponent << 23) / scale;
    const int32_t k = (int32_t)(bit_cast<uint32_t>(least_quotient) >> 23) - 127;
    const int32_t normal = exponent - k - 6, zero = exponent - k - 10 - 1;
    table.normal = (uint32_t)(normal << 7) * 0x10001;
    table.zero = (uint32_t)(zero << 7) * 0x10001;
    table.scale = scale;
    return table;
}

struct Constants {
    __m512i no_sign, even, odd, exponent_bits, sign_bit;
};

// A compiler that sees through a constant builds it again in every turn of a loop.
VBMI INLINE __m512i keep(__m512i value) {
    __asm__("" : "+v"(value));
    return value;
}

VBMI INLINE Constants constants() {
    alignas(64) uint8_t even[64];
    for (int i = 0; i < 64; i++) even[i] = (uint8_t)(2 * i);
    Constants constant;
    constant.no_sign = keep(_mm512_set1_epi16(0x7fff));
    constant.even = keep(_mm512_load_si512(even));
    constant.odd = keep(_mm512_add_epi8(constant.even, _mm512_set1_epi8(1)));
    constant.exponent_bits = keep(_mm512_set1_epi8((char)0xf8));
    constant.sign_bit = keep(_mm512_set1_epi8((char)0x80));
    return constant;
}

// The codes of 64 BF16 numbers.
VBMI INLINE __m512i codes_of_64(__m512i first, __m512i second, const CodeTable& table,
                                const Constants& constant) {
    // Bytes of the 64 numbers: sign and upper exponent; lowest exponent bit and mantissa (the
    // look-up ignores that top bit); and the exponent once more, shifted to where 8 e has it.
    const __m512i sign = _mm512_permutex2var_epi8(first, constant.odd, second);
    const __m512i mantissa = _mm512_permutex2var_epi8(first, constant.even, second);
    const __m512i exponent = _mm512_permutex2var_epi8(_mm512_srli_epi16(first, 4), constant.even,
                                                      _mm512_srli_epi16(second, 4));
    __m512i codes = _mm512_add_epi8(_mm512_and_si512(exponent, constant.exponent_bits),
                                    _mm512_permutex2var_epi8(table.low, mantissa, table.high));
    const __m512i first_size = _mm512_and_si512(first, constant.no_sign);
    const __m512i second_size = _mm512_and_si512(second, constant.no_sign);
    const __m512i normal = _mm512_set1_epi32((int)table.normal);
    const __mmask32 small =
        _mm512_cmplt_epu16_mask(_mm512_min_epu16(first_size, second_size), normal);
    if (__builtin_expect(small != 0, 0)) {
        const __m512i zero = _mm512_set1_epi32((int)table.zero);
        const __mmask32 first_zero = _mm512_cmplt_epu16_mask(first_size, zero);
        const __mmask32 second_zero = _mm512_cmplt_epu16_mask(second_size, zero);
        if (first_zero != _mm512_cmplt_epu16_mask(first_size, normal) ||
            second_zero != _mm512_cmplt_epu16_mask(second_size, normal)) {
            const __m512 scale = _mm512_set1_ps(table.scale);
            return _mm512_inserti64x4(_mm512_castsi256_si512(divide32(first, scale)),
                                      divide32(second, scale), 1);
        }
        // nothing small but zeros, which sparse and padded weights have many of
        const __mmask64 zeros = (__mmask64)second_zero << 32 | first_zero;
        codes = _mm512_mask_mov_epi8(codes, zeros, _mm512_setzero_si512());
    }
    return _mm512_ternarylogic_epi32(codes, sign, constant.sign_bit, 0xD8);
}

// The first `count` of 32 or 64 elements, none of them or all where it is out of that range.
INLINE uint32_t first_of_32(int64_t count) {
    return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
}
INLINE uint64_t first_of_64(int64_t count) {
    return count >= 64 ? ~0ull : count <= 0 ? 0ull : (1ull << count) - 1;
}

// 32 BF16 numbers; those from `valid` on are not read and come back as zero.
template <bool WHOLE>
VBMI INLINE __m512i load32(const uint16_t* from, int64_t valid) {
    return WHOLE ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(first_of_32(valid), from);
}

// Blocks side by side that are converted together. Their rows are runs of 2 KiB, and all of them
// 256 KiB, which stay in the second-level cache from the first reading (amax) to the second.
static const int64_t STRIP = 8;

// From this size on the codes leave the cache before anyone reads them: write around it.
static const int64_t STREAM_BYTES = 16 << 20;

// Raise `most` to the magnitudes of one row of a block.
template <bool WHOLE>
VBMI INLINE __m512i row_max(const uint16_t* from, int64_t width, __m512i most, __m512i no_sign) {
    for (int64_t i = 0; i < BLOCK; i += 32) {
        const __m512i magnitude = _mm512_and_si512(load32<WHOLE>(from + i, width - i), no_sign);
        most = _mm512_max_epu16(most, magnitude);
    }
    return most;
}

template <bool WHOLE, bool STREAM>
VBMI INLINE void quantize_row(const uint16_t* from, int64_t width, uint8_t* to,
                              const CodeTable& table, const Constants& constant) {
    for (int64_t i = 0; i < BLOCK; i += 64) {
        const __m512i codes =
            codes_of_64(load32<WHOLE>(from + i, width - i),
                        load32<WHOLE>(from + i + 32, width - i - 32), table, constant);
        if (!WHOLE) _mm512_mask_storeu_epi8(to + i, first_of_64(width - i), codes);
        else if (STREAM) _mm512_stream_si512((__m512i*)(to + i), codes);
        else _mm512_storeu_si512(to + i, codes);
    }
}

VBMI INLINE uint32_t largest(__m512i lanes) {
    alignas(64) uint16_t each[32];
    _mm512_store_si512(each, lanes);
    uint32_t most = 0;
    for (int i = 0; i < 32; i++) most = each[i] > most ? each[i] : most;
    return most;
}

template <bool STREAM>
VBMI static int64_t quantize_table(const uint16_t* weight, int64_t rows, int64_t cols,
                                   uint8_t* codes, UnalignedFloat* scale_inv, bool ue8m0) {
    const Constants constant = constants();
    const float floor = floor_of(ue8m0);
    CodeTable tables[STRIP];
    for (int64_t top = 0; top < rows; top += BLOCK) {
        const int64_t height = least(BLOCK, rows - top);
        for (int64_t left = 0; left < cols; left += STRIP * BLOCK) {
            const int64_t at = top * cols + left, strip_cols = least(STRIP * BLOCK, cols - left);
            const int64_t whole = strip_cols / BLOCK, ragged = strip_cols % BLOCK;
            const int64_t blocks = whole + (ragged != 0);

            __m512i most[STRIP];
            for (int64_t block = 0; block < blocks; block++) most[block] = _mm512_setzero_si512();
            for (int64_t row = 0; row < height; row++) {
                const uint16_t* from = weight + at + row * cols;
                for (int64_t block = 0; block < whole; block++, from += BLOCK)
                    most[block] = row_max<true>(from, BLOCK, most[block], constant.no_sign);
                if (ragged)
                    most[whole] = row_max<false>(from, ragged, most[whole], constant.no_sign);
            }

            for (int64_t block = 0; block < blocks; block++) {
                const uint32_t bits = largest(most[block]);
                if (bits >= (uint32_t)Bf16::INFINITE) {
                    const int64_t start = at + block * BLOCK;
                    const int64_t width = block < whole ? BLOCK : ragged;
                    return start + first_not_finite<Bf16>(weight + start, height, width, cols);
                }
                float amax = Bf16::widen(bits);
                amax = amax > floor ? amax : floor;
                const float scale = scale_of(amax, ue8m0);
                *scale_inv++ = scale;
                tables[block] = code_table(amax, scale);
            }

            // The next strip lies to the right, or below on the left. Ask for it while this one is
            // computed; asking for memory past the end is harmless.
            const int64_t next = left + strip_cols < cols ? strip_cols : BLOCK * cols - left;
            for (int64_t row = 0; row < height; row++) {
                const uint16_t* from = weight + at + row * cols;
                uint8_t* to = codes + at + row * cols;
                for (int64_t block = 0; block < whole; block++, from += BLOCK, to += BLOCK) {
                    for (int64_t i = 0; i < BLOCK; i += 32)
                        _mm_prefetch((const char*)(from + next + i), _MM_HINT_T1);
                    quantize_row<true, STREAM>(from, BLOCK, to, tables[block], constant);
                }
                if (ragged) quantize_row<false, STREAM>(from, ragged, to, tables[whole], constant);
            }
        }
    }
    if (STREAM) _mm_sfence();
    return -1;
}

// ---- Dequantize by table: a block has 128 magnitudes, so 128 BF16 results and their negatives ----

struct Magnitudes {
    __m512i low[2], high[2];  // lower and upper byte of the result for the codes 0..63, 64..127
};

VBMI INLINE Magnitudes magnitudes_of(float scale) {
    alignas(64) uint8_t codes[BLOCK], low[BLOCK], high[BLOCK];
    alignas(64) uint16_t results[BLOCK];
    for (int i = 0; i < BLOCK; i++) codes[i] = (uint8_t)i;
    dequantize_run(codes, BLOCK, scale, (Unaligned16*)results);
    for (int i = 0; i < BLOCK; i++) low[i] = (uint8_t)results[i], high[i] = (uint8_t)(results[i] >> 8);
    return {{_mm512_load_si512(low), _mm512_load_si512(low + 64)},
            {_mm512_load_si512(high), _mm512_load_si512(high + 64)}};
}

struct Pair {
    __m512i first, second;
};

// The BF16 numbers of 64 codes.
VBMI INLINE Pair back_of_64(__m512i codes, const Magnitudes& magnitude, __m512i sign_bit) {
    // unpacking works on 16 bytes at a time; this order of codes makes its results come in order
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    const __m512i code = _mm512_permutexvar_epi64(order, codes);
    const __m512i low = _mm512_permutex2var_epi8(magnitude.low[0], code, magnitude.low[1]);
    __m512i high = _mm512_permutex2var_epi8(magnitude.high[0], code, magnitude.high[1]);
    high = _mm512_ternarylogic_epi32(high, code, sign_bit, 0x78);  // xor the sign
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
}

template <bool STREAM>
VBMI INLINE void store_bf16(Unaligned16* to, __m512i value) {
    if (STREAM) _mm512_stream_si512((__m512i*)to, value);
    else _mm512_storeu_si512(to, value);
}

static const int64_t WIDE_STRIP = 32;  // blocks; their magnitudes fill 8 KiB

// Whole blocks of 128 x 128; a ragged block of columns is left to the plain body.
template <bool STREAM>
VBMI static void dequantize_table(const uint8_t* codes, int64_t rows, int64_t cols,
                                  const UnalignedFloat* scale_inv, Unaligned16* out) {
    const int64_t whole = cols / BLOCK, ragged = cols % BLOCK;
    const __m512i sign_bit = keep(_mm512_set1_epi8((char)0x80));
    Magnitudes magnitudes[WIDE_STRIP];
    for (int64_t top = 0; top < rows; top += BLOCK) {
        const int64_t height = least(BLOCK, rows - top);
        const UnalignedFloat* scales = scale_inv + top / BLOCK * blocks_of(cols, BLOCK);
        for (int64_t left = 0; left < whole; left += WIDE_STRIP) {
            const int64_t blocks = least(WIDE_STRIP, whole - left);
            for (int64_t block = 0; block < blocks; block++)
                magnitudes[block] = magnitudes_of(scales[left + block]);
            for (int64_t row = top; row < top + height; row++)
                for (int64_t block = 0; block < blocks; block++) {
                    const Magnitudes& magnitude = magnitudes[block];
                    const int64_t at = row * cols + (left + block) * BLOCK;
                    for (int64_t i = at; i < at + BLOCK; i += 64) {
                        const Pair back =
                            back_of_64(_mm512_loadu_si512(codes + i), magnitude, sign_bit);
                        store_bf16<STREAM>(out + i, back.first);
                        store_bf16<STREAM>(out + i + 32, back.second);
                    }
                }
        }
        if (ragged)
            for (int64_t row = top; row < top + height; row++) {
                const int64_t at = row * cols + whole * BLOCK;
                dequantize_run(codes + at, ragged, scales[whole], out + at);
            }
    }
    if (STREAM) _mm_sfence();
}

// ---- Recover by table ---------------------------------------------------------------------------

struct TableSteps {
    template <bool WHOLE>
    VBMI INLINE Seen look_at(const uint16_t* block, int64_t rows, int64_t cols, int64_t stride) {
        const Constants constant = constants();
        Seen seen = {};
        alignas(64) uint8_t is_new[BLOCK];  // by mantissa: all bits, or none
        memset(is_new, 0xff, sizeof is_new);
        __m512i low = _mm512_load_si512(is_new), high = low, most = _mm512_setzero_si512();
        for (int64_t row = 0; row < rows && seen.count <= SIGNIFICANDS; row++)
            for (int64_t i = 0; i < BLOCK; i += 64) {
                const uint16_t* from = block + row * stride + i;
                // the block to the right comes next, see seen_in_block()
                _mm_prefetch((const char*)(from + BLOCK), _MM_HINT_T1);
                _mm_prefetch((const char*)(from + BLOCK + 32), _MM_HINT_T1);
                const __m512i first =
                    _mm512_and_si512(load32<WHOLE>(from, cols - i), constant.no_sign);
                const __m512i second =
                    _mm512_and_si512(load32<WHOLE>(from + 32, cols - i - 32), constant.no_sign);
                most = _mm512_max_epu16(most, _mm512_max_epu16(first, second));
                const __m512i mantissa = _mm512_permutex2var_epi8(first, constant.even, second);
                uint64_t news =
                    _mm512_movepi8_mask(_mm512_permutex2var_epi8(low, mantissa, high));
                if (__builtin_expect(!news, 1)) continue;
                news &= (uint64_t)_mm512_test_epi16_mask(second, second) << 32 |
                        _mm512_test_epi16_mask(first, first);
                for (; news; news &= news - 1) {
                    const uint32_t one = from[__builtin_ctzll(news)] & 0x7f;
                    seen.count += is_new[one] & 1;
                    is_new[one] = 0;
                    seen.words[one >> 5] |= 1u << (one & 31);
                }
                low = _mm512_load_si512(is_new);
                high = _mm512_load_si512(is_new + 64);
            }
        seen.most = (int32_t)largest(most);
        return seen;
    }

    template <bool WHOLE>
    VBMI INLINE bool encode_as(const uint16_t* block, int64_t rows, int64_t cols, int64_t stride,
                               float amax, float scale, uint8_t* codes) {
        const Constants constant = constants();
        const CodeTable table = code_table(amax, scale);
        const Magnitudes magnitude = magnitudes_of(scale);
        for (int64_t row = 0; row < rows; row++) {
            const uint16_t* from = block + row * stride;
            uint8_t* to = codes + row * stride;
            quantize_row<WHOLE, false>(from, cols, to, table, constant);
            __mmask32 differences = 0;
            for (int64_t i = 0; i < BLOCK; i += 64) {
                const __m512i coded = WHOLE ? _mm512_loadu_si512(to + i)
                                            : _mm512_maskz_loadu_epi8(first_of_64(cols - i), to + i);
                const Pair back = back_of_64(coded, magnitude, constant.sign_bit);
                differences |= _mm512_cmpneq_epu16_mask(back.first, load32<WHOLE>(from + i, cols - i));
                differences |= _mm512_cmpneq_epu16_mask(
                    back.second, load32<WHOLE>(from + i + 32, cols - i - 32));
            }
            if (differences) return false;
        }
        return true;
    }

    VBMI static Seen look(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride) {
        const uint16_t* from = (const uint16_t*)block;
        return cols == BLOCK ? look_at<true>(from, rows, cols, stride)
                             : look_at<false>(from, rows, cols, stride);
    }
    VBMI static bool encode(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride,
                            float amax, float scale, uint8_t* codes) {
        const uint16_t* from = (const uint16_t*)block;
        return cols == BLOCK ? encode_as<true>(from, rows, cols, stride, amax, scale, codes)
                             : encode_as<false>(from, rows, cols, stride, amax, scale, codes);
    }
};

VBMI static int64_t recover_table(const Unaligned16* weight, int64_t rows, int64_t cols,
                                  uint8_t* codes, UnalignedFloat* scale_inv, bool powers_only) {
    return recover_body<TableSteps>(weight, rows, cols, codes, scale_inv, powers_only, BLOCK);
}
#endif

// ---- Levels -------------------------------------------------------------------------------------

struct Kernels {
    const char* name;
    int64_t (*quantize)(const void*, int, int64_t, int64_t, uint8_t*, UnalignedFloat*, bool, int64_t);
    void (*dequantize)(const uint8_t*, int64_t, int64_t, const UnalignedFloat*, int64_t, int64_t,
                       Unaligned16*);
    int64_t (*recover)(const Unaligned16*, int64_t, int64_t, uint8_t*, UnalignedFloat*, bool, int64_t);
    void (*dequantize_float32)(const uint8_t*, int64_t, int64_t, const UnalignedFloat*, int64_t,
                               int64_t, UnalignedFloat*);
    void (*widen)(const void*, int, int64_t, UnalignedFloat*);
    void (*narrow)(const UnalignedFloat*, int64_t, Unaligned16*);
    int64_t (*outside_bound)(const UnalignedFloat*, const uint8_t*, int64_t, int64_t,
                             const UnalignedFloat*, int64_t, int64_t, int64_t*);
    void (*difference)(const UnalignedFloat*, const UnalignedFloat*, int64_t, double*);
    int64_t (*first_with_all)(const void*, int, uint32_t, int64_t);
};

// The plain bodies, compiled for one instruction set.
#define LEVEL(Level, target)                                                                       \
    struct Level {                                                                                 \
        target static int64_t quantize(const void* weight, int dtype, int64_t rows, int64_t cols,  \
                                       uint8_t* codes, UnalignedFloat* scale_inv, bool ue8m0,      \
                                       int64_t block_size) {                                       \
            return quantize_plain(weight, dtype, rows, cols, codes, scale_inv, ue8m0, block_size); \
        }                                                                                          \
        target static void dequantize(const uint8_t* codes, int64_t rows, int64_t cols,            \
                                      const UnalignedFloat* scale_inv, int64_t block_rows,         \
                                      int64_t block_cols, Unaligned16* out) {                      \
            dequantize_plain(codes, rows, cols, scale_inv, block_rows, block_cols, out);           \
        }                                                                                          \
        target static void dequantize_float32(const uint8_t* codes, int64_t rows, int64_t cols,    \
                                              const UnalignedFloat* scale_inv, int64_t block_rows, \
                                              int64_t block_cols, UnalignedFloat* out) {           \
            dequantize_plain(codes, rows, cols, scale_inv, block_rows, block_cols, out);           \
        }                                                                                          \
        target static void widen(const void* data, int dtype, int64_t count,                       \
                                 UnalignedFloat* out) {                                            \
            widen_plain(data, dtype, count, out);                                                  \
        }                                                                                          \
        target static void narrow(const UnalignedFloat* data, int64_t count, Unaligned16* out) {   \
            narrow_plain(data, count, out);                                                        \
        }                                                                                          \
        target static int64_t outside_bound(const UnalignedFloat* weight, const uint8_t* codes,    \
                                            int64_t rows, int64_t cols,                            \
                                            const UnalignedFloat* scale_inv, int64_t block_rows,   \
                                            int64_t block_cols, int64_t* first) {                  \
            return outside_bound_plain(weight, codes, rows, cols, scale_inv, block_rows,           \
                                       block_cols, first);                                         \
        }                                                                                          \
        target static void difference(const UnalignedFloat* a, const UnalignedFloat* b,            \
                                      int64_t count, double* out) {                                \
            difference_plain(a, b, count, out);                                                    \
        }                                                                                          \
        target static int64_t first_with_all(const void* data, int itemsize, uint32_t mask,        \
                                             int64_t count) {                                      \
            return first_with_all_plain(data, itemsize, mask, count);                              \
        }                                                                                          \
        target static int64_t recover(const Unaligned16* weight, int64_t rows, int64_t cols,       \
                                      uint8_t* codes, UnalignedFloat* scale_inv, bool powers_only, \
                                      int64_t block_size) {                                        \
            return recover_plain(weight, rows, cols, codes, scale_inv, powers_only, block_size);   \
        }                                                                                          \
    }
#define REST(Level)                                                                             \
    Level::dequantize_float32, Level::widen, Level::narrow, Level::outside_bound, Level::difference, \
        Level::first_with_all

LEVEL(Baseline, );
#if defined(__x86_64__)
LEVEL(Avx2, TARGET("avx2"));
LEVEL(Avx512, TARGET(AVX512));

static bool streams(const void* out, int64_t row_bytes, int64_t rows) {
    return rows * row_bytes >= STREAM_BYTES && (uintptr_t)out % 64 == 0 && row_bytes % 64 == 0;
}

static int64_t quantize_vbmi(const void* weight, int dtype, int64_t rows, int64_t cols,
                             uint8_t* codes, UnalignedFloat* scale_inv, bool ue8m0,
                             int64_t block_size) {
    if (dtype != BF16_DTYPE || block_size != BLOCK)
        return Avx512::quantize(weight, dtype, rows, cols, codes, scale_inv, ue8m0, block_size);
    const auto run = streams(codes, cols, rows) ? quantize_table<true> : quantize_table<false>;
    return run((const uint16_t*)weight, rows, cols, codes, scale_inv, ue8m0);
}

static void dequantize_vbmi(const uint8_t* codes, int64_t rows, int64_t cols,
                            const UnalignedFloat* scale_inv, int64_t block_rows, int64_t block_cols,
                            Unaligned16* out) {
    if (block_rows != BLOCK || block_cols != BLOCK)
        return Avx512::dequantize(codes, rows, cols, scale_inv, block_rows, block_cols, out);
    const auto run = streams(out, 2 * cols, rows) ? dequantize_table<true> : dequantize_table<false>;
    run(codes, rows, cols, scale_inv, out);
}

static int64_t recover_vbmi(const Unaligned16* weight, int64_t rows, int64_t cols, uint8_t* codes,
                            UnalignedFloat* scale_inv, bool powers_only, int64_t block_size) {
    if (block_size != BLOCK)
        return Avx512::recover(weight, rows, cols, codes, scale_inv, powers_only, block_size);
    return recover_table(weight, rows, cols, codes, scale_inv, powers_only);
}

static const Kernels LEVELS[] = {
    {"avx512vbmi", quantize_vbmi, dequantize_vbmi, recover_vbmi, REST(Avx512)},
    {"avx512", Avx512::quantize, Avx512::dequantize, Avx512::recover, REST(Avx512)},
    {"avx2", Avx2::quantize, Avx2::dequantize, Avx2::recover, REST(Avx2)},
    {"baseline", Baseline::quantize, Baseline::dequantize, Baseline::recover, REST(Baseline)},
};

static bool cpu_runs(int level) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (level == 0) return avx512 && __builtin_cpu_supports("avx512vbmi");
    if (level == 1) return avx512;
    return level == 3 || __builtin_cpu_supports("avx2");
}
#else
static const Kernels LEVELS[] = {{"baseline", Baseline::quantize, Baseline::dequantize,
                                  Baseline::recover, REST(Baseline)}};
static bool cpu_runs(int) { return true; }
#endif

// ---- The C interface, see native.py -------------------------------------------------------------

API int dstools_cpu_abi() { return 3; }

// The number that the kernels below know a level by; -1 where this library or CPU has none such.
API int dstools_cpu_level(const char* name) {
    const int count = (int)(sizeof LEVELS / sizeof *LEVELS);
    for (int level = 0; level < count; level++)
        if (!strcmp(name, LEVELS[level].name)) return cpu_runs(level) ? level : -1;
    return -1;
}

API int64_t dstools_quantize(int level, const void* weight, int dtype, int64_t rows, int64_t cols,
                             uint8_t* codes, UnalignedFloat* scale_inv, int ue8m0,
                             int64_t block_size) {
    return LEVELS[level].quantize(weight, dtype, rows, cols, codes, scale_inv, ue8m0, block_size);
}

API void dstools_dequantize(int level, const uint8_t* codes, int64_t rows, int64_t cols,
                            const UnalignedFloat* scale_inv, int64_t block_rows, int64_t block_cols,
                            Unaligned16* out) {
    LEVELS[level].dequantize(codes, rows, cols, scale_inv, block_rows, block_cols, out);
}

API void dstools_dequantize_float32(int level, const uint8_t* codes, int64_t rows, int64_t cols,
                                    const UnalignedFloat* scale_inv, int64_t block_rows,
                                    int64_t block_cols, UnalignedFloat* out) {
    LEVELS[level].dequantize_float32(codes, rows, cols, scale_inv, block_rows, block_cols, out);
}

API void dstools_widen(int level, const void* data, int dtype, int64_t count, UnalignedFloat* out) {
    LEVELS[level].widen(data, dtype, count, out);
}

API void dstools_narrow(int level, const UnalignedFloat* data, int64_t count, Unaligned16* out) {
    LEVELS[level].narrow(data, count, out);
}

API int64_t dstools_outside_bound(int level, const UnalignedFloat* weight, const uint8_t* codes,
                                  int64_t rows, int64_t cols, const UnalignedFloat* scale_inv,
                                  int64_t block_rows, int64_t block_cols, int64_t* first) {
    return LEVELS[level].outside_bound(weight, codes, rows, cols, scale_inv, block_rows, block_cols,
                                       first);
}

API void dstools_difference(int level, const UnalignedFloat* a, const UnalignedFloat* b,
                            int64_t count, double* out) {
    LEVELS[level].difference(a, b, count, out);
}

API int64_t dstools_first_with_all(int level, const void* data, int itemsize, uint32_t mask,
                                   int64_t count) {
    return LEVELS[level].first_with_all(data, itemsize, mask, count);
}

API int64_t dstools_recover(int level, const Unaligned16* weight, int64_t rows, int64_t cols,
                            uint8_t* codes, UnalignedFloat* scale_inv, int powers_only,
                            int64_t block_size) {
    return LEVELS[level].recover(weight, rows, cols, codes, scale_inv, powers_only, block_size);
}
