// Block FP8 on the CPU: the levels and the C interface, which uses libc alone.
//
// Each kernel is one plain body (plain.h, recover.h), compiled once per instruction set; the caller
// passes the level to run. Kernels between BF16 and FP8 have a second body, a table look-up for
// AVX-512 VBMI (table.h). All are one compilation unit, so that a body is inlined into each level.
//
// The build must keep to -ffp-contract=off (a fused multiply-add rounds once where the definition
// rounds twice), must not use -ffast-math and must not flush subnormals. -fno-trapping-math is
// wanted: it changes no value, and without it GCC will not vectorise arithmetic under a condition.
#include "plain.h"
#include "recover.h"
#include "table.h"

#define API extern "C" __attribute__((visibility("default")))

// ---- Levels -------------------------------------------------------------------------------------

struct Kernels {
    const char* name;
    int64_t (*quantize)(const void*, int, int64_t, int64_t, uint8_t*, UnalignedFloat*, bool,
                        int64_t);
    void (*dequantize)(const uint8_t*, int64_t, int64_t, const UnalignedFloat*, int64_t, int64_t,
                       Unaligned16*);
    int64_t (*recover)(const Unaligned16*, int64_t, int64_t, uint8_t*, UnalignedFloat*, bool,
                       int64_t);
    void (*dequantize_float32)(const uint8_t*, int64_t, int64_t, const UnalignedFloat*, int64_t,
                               int64_t, UnalignedFloat*);
    void (*widen)(const void*, int, int64_t, UnalignedFloat*);
    void (*narrow)(const UnalignedFloat*, int64_t, Unaligned16*);
    int64_t (*outside_bound)(const UnalignedFloat*, const uint8_t*, int64_t, int64_t,
                             const UnalignedFloat*, int64_t, int64_t, int64_t*);
    void (*difference)(const UnalignedFloat*, const UnalignedFloat*, int64_t, double*);
    int64_t (*first_with_all)(const void*, int, uint64_t, int64_t);
    int64_t (*largest)(const void*, int, int64_t);
    int64_t (*smallest)(const void*, int64_t);
};

// The plain bodies, compiled for one instruction set; the table of levels gives the argument types.
#define BODY(target, name, body)                                                                   \
    template <class... A>                                                                          \
    target static auto name(A... arguments) { return body(arguments...); }
#define LEVEL(Level, target)                                                                       \
    struct Level {                                                                                 \
        BODY(target, quantize, quantize_plain)                                                     \
        BODY(target, dequantize, dequantize_plain)                                                 \
        BODY(target, dequantize_float32, dequantize_plain)                                         \
        BODY(target, widen, widen_plain)                                                           \
        BODY(target, narrow, narrow_plain)                                                         \
        BODY(target, outside_bound, outside_bound_plain)                                           \
        BODY(target, difference, difference_plain)                                                 \
        BODY(target, first_with_all, first_with_all_plain)                                         \
        BODY(target, largest, largest_plain)                                                       \
        BODY(target, smallest, smallest_plain)                                                     \
        BODY(target, recover, recover_plain)                                                       \
    }
#define REST(Level)                                                                                \
    Level::dequantize_float32, Level::widen, Level::narrow, Level::outside_bound,                  \
        Level::difference, Level::first_with_all, Level::largest, Level::smallest

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
    const bool is_streamed = streams(out, 2 * cols, rows);
    const auto run = is_streamed ? dequantize_table<true> : dequantize_table<false>;
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

API int dstools_cpu_abi() { return 4; }

// The number of a level in the calls below; -1 where this library or CPU lacks the level.
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

API int64_t dstools_first_with_all(int level, const void* data, int itemsize, uint64_t mask,
                                   int64_t count) {
    return LEVELS[level].first_with_all(data, itemsize, mask, count);
}

API int64_t dstools_largest(int level, const void* data, int itemsize, int64_t count) {
    return LEVELS[level].largest(data, itemsize, count);
}

API int64_t dstools_smallest(int level, const void* data, int64_t count) {
    return LEVELS[level].smallest(data, count);
}

API int64_t dstools_recover(int level, const Unaligned16* weight, int64_t rows, int64_t cols,
                            uint8_t* codes, UnalignedFloat* scale_inv, int powers_only,
                            int64_t block_size) {
    return LEVELS[level].recover(weight, rows, cols, codes, scale_inv, powers_only, block_size);
}
