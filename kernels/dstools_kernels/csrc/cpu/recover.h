// Recover codes and scales from the BF16 that they dequantized to: see lattice.py.
//
// Powers of two change no significand, so of the products of a scale and all codes only those of
// 8 significands differ: a block with more than 8 mantissas was never FP8. Its mantissas, lifted
// into the binade that ends in amax, represent the whole block in the search for a scale.
#pragma once

#include "plain.h"
#include "table.h"

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

// What a block has; only its first rows where these have too many mantissas already.
INLINE Seen seen_in_block(const Unaligned16* block, int64_t rows, int64_t cols, int64_t stride) {
    Seen seen = {};
    for (int64_t row = 0; row < rows && seen.count <= SIGNIFICANDS; row++) {
        const Unaligned16* from = block + row * stride;
        // The block to the right comes next. Prefetching memory past the end is harmless.
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
    Lifted lifted = {0, (uint32_t)seen.most, {}};
    const uint32_t binade = lifted.amax & 0x7f80, top = lifted.amax & 0x7f;
    for (uint32_t mantissa = 0; mantissa < 128; mantissa++)
        if (seen.words[mantissa >> 5] >> (mantissa & 31) & 1)
            lifted.values[lifted.count++] = binade + mantissa - (mantissa > top ? 0x80 : 0);
    return lifted;
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
    Interval scales = {bit_cast<uint32_t>(least / code) - 2,
                       bit_cast<uint32_t>(greatest / code) + 2};
    while (bit_cast<float>(scales.low) * code < least) scales.low++;
    while (bit_cast<float>(scales.high) * code > greatest) scales.high--;
    return scales;
}

// The scale under which amax has code `top` and every other value has one too; 0 where none is.
INLINE float scale_under(uint32_t top, const Lifted& lifted) {
    Interval scales = scales_of(magnitude_of_e4m3(top), lifted.amax);
    for (int64_t i = 0; i < lifted.count; i++) {
        // Scales within a 2^-7th of each other and a value within 2^-8 of its product leave one
        // code: they are at least a 15th apart.
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

// Recover one block; its scale, or 0 where it has none.
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

// Recover [rows, cols]; the number of the first block without codes and scale, or -1.
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

// ---- Recover by table ---------------------------------------------------------------------------

#if defined(__x86_64__)
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
                const __m512i coded =
                    WHOLE ? _mm512_loadu_si512(to + i)
                          : _mm512_maskz_loadu_epi8(first_of_64(cols - i), to + i);
                const Pair back = back_of_64(coded, magnitude, constant.sign_bit);
                const __m512i first = load32<WHOLE>(from + i, cols - i);
                const __m512i second = load32<WHOLE>(from + i + 32, cols - i - 32);
                differences |= _mm512_cmpneq_epu16_mask(back.first, first);
                differences |= _mm512_cmpneq_epu16_mask(back.second, second);
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
