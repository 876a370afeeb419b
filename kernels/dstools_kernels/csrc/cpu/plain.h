// The plain bodies: loops that compilers vectorise, compiled once per instruction set.
#pragma once

#include "one_number.h"

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
    Magnitude lanes[BLOCK] = {};  // one maximum a column; reduced across columns at the end
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
            const typename Source::Element* block = from + at;
            uint8_t* to = codes + at;
            // the same call twice: with a constant width the loops need no remainder
            const bool finite =
                width == BLOCK
                    ? quantize_block<Source>(block, height, BLOCK, cols, to, scale_inv, ue8m0)
                    : quantize_block<Source>(block, height, width, cols, to, scale_inv, ue8m0);
            if (!finite) return at + first_not_finite<Source>(block, height, width, cols);
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
        Element is_any = 0;
        for (int64_t i = 0; i < width; i++)
            is_any |= (Element)((element[start + i] & mask) == mask);
        if (is_any)
            for (int64_t i = start;; i++)
                if ((element[i] & mask) == mask) return i;
    }
    return -1;
}

INLINE int64_t first_with_all_plain(const void* data, int itemsize, uint64_t mask, int64_t count) {
    if (itemsize == 1) return first_with_all<uint8_t>(data, (uint8_t)mask, count);
    if (itemsize == 2) return first_with_all<Unaligned16>(data, (Unaligned16)mask, count);
    if (itemsize == 4) return first_with_all<Unaligned32>(data, (Unaligned32)mask, count);
    return first_with_all<Unaligned64>(data, mask, count);
}

// The largest magnitude of `count` elements, as bits: what is left without the sign is ordered like
// the numbers, see Bf16.
template <class Element, class Magnitude>
INLINE int64_t largest(const void* data, int64_t count) {
    const Element* element = (const Element*)data;
    const Element no_sign = (Element)((Element)~(Element)0 >> 1);
    Magnitude most = 0;
    for (int64_t i = 0; i < count; i++) {
        const Magnitude magnitude = (Magnitude)(element[i] & no_sign);
        most = magnitude > most ? magnitude : most;
    }
    return (int64_t)most;
}

INLINE int64_t largest_plain(const void* data, int itemsize, int64_t count) {
    // of one byte, SSE2 has an unsigned maximum; of two, a signed one
    if (itemsize == 1) return largest<uint8_t, uint8_t>(data, count);
    if (itemsize == 2) return largest<Unaligned16, int16_t>(data, count);
    if (itemsize == 4) return largest<Unaligned32, int32_t>(data, count);
    return largest<Unaligned64, int64_t>(data, count);
}

// The least of `count` float32 without NaN, as bits, infinity's for none: those of positive numbers
// are ordered like the numbers, and as signed integers those with a sign are below them.
INLINE int64_t smallest_plain(const void* data, int64_t count) {
    const Unaligned32* element = (const Unaligned32*)data;
    int32_t least = 0x7f800000;
    for (int64_t i = 0; i < count; i++) {
        const int32_t bits = (int32_t)element[i];
        least = bits < least ? bits : least;
    }
    return least;
}
