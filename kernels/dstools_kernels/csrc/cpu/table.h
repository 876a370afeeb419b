// The table kernels: quantize and dequantize by table look-up, for AVX-512 VBMI and blocks of 128.
//
// BF16 has 7 mantissa bits and a block has one scale, so a block divides only 128 different
// significands. With e the exponent of an element and m its mantissa, wherever the code is normal
//     code = 8 e + T[m]   (mod 256)
// because multiplying by a power of two commutes with both roundings, and in E4M3 raises the code
// by 8, the carry out of the mantissa included. T comes from 128 true divisions a block. The true
// code lies in 0..0x7e, so arithmetic modulo 256 loses nothing.
// Elements below a threshold have subnormal codes or none; they take the division.
#pragma once

#include "plain.h"

#if defined(__x86_64__)
#include <immintrin.h>

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
    const __m512i sign = _mm512_srli_epi32(bits, 24);
    return _mm512_ternarylogic_epi32(code, sign, _mm512_set1_epi32(0x80), 0xD8);
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
        const __m128i sixteen = _mm512_cvtepi32_epi8(e4m3_from_floats(quotient));
        _mm_store_si128((__m128i*)(codes + first), sixteen);
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

// A compiler that sees a constant rebuilds it in every iteration of a loop: hide it.
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

// A mask of the first `count` of 32 or 64 elements; none or all where `count` is out of range.
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
// 256 KiB, which stay in the level-2 cache from the first reading (amax) to the second.
static const int64_t STRIP = 8;

// From this size on the codes leave the cache before they are read: write around it.
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
    alignas(64) uint16_t values[32];
    _mm512_store_si512(values, lanes);
    uint32_t most = 0;
    for (int i = 0; i < 32; i++) most = values[i] > most ? values[i] : most;
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

            // The next strip is to the right, or below on the left. Prefetch it while this one is
            // computed; prefetching memory past the end is harmless.
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

// ---- Dequantize: a block has 128 magnitudes, so 128 BF16 results and their negatives ----------

struct Magnitudes {
    __m512i low[2], high[2];  // lower and upper byte of the result for the codes 0..63, 64..127
};

VBMI INLINE Magnitudes magnitudes_of(float scale) {
    alignas(64) uint8_t codes[BLOCK], low[BLOCK], high[BLOCK];
    alignas(64) uint16_t results[BLOCK];
    for (int i = 0; i < BLOCK; i++) codes[i] = (uint8_t)i;
    dequantize_run(codes, BLOCK, scale, (Unaligned16*)results);
    for (int i = 0; i < BLOCK; i++) {
        low[i] = (uint8_t)results[i];
        high[i] = (uint8_t)(results[i] >> 8);
    }
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

// Whole blocks of 128 x 128; a ragged block of columns goes to the plain body.
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
#endif
