// DsMoE and DsFp8BlockMoE: copies of tokens sorted by expert, three products of ragged groups, and
// the weighted sum of what they give. Experts of other ranks add nothing.
#pragma once

#include "linear.h"

namespace dstools {

inline std::string why_not_moe(Sizes const& s, Type x, bool is_fp8) {
    int64_t const step = is_fp8 ? 16 : 8;  // rows of 16 bytes, as TMA needs them
    if (x != Type::kBf16) return "there are kernels for BF16 alone";
    if (s['K'] < 1 || s['K'] > kMaxSlots)
        return "there are kernels for 1 to " + std::to_string(kMaxSlots) + " experts a token";
    if (s['e'] < 1 || s['e'] > kMaxExperts)
        return "there are kernels for 1 to " + std::to_string(kMaxExperts) + " experts on a rank";
    if (s['D'] % step || s['I'] % step)
        return "D and I must be divisible by " + std::to_string(step);
    return "";
}

// The rows of a rank, as `permute` sorts them.
struct Rows {
    int64_t count;  // copies of tokens
    uint64_t tokens, destination, offsets;
};

inline Rows permute(Launches& launches, Sizes const& s, Tensors const& t, Workspace& workspace) {
    int64_t const count = s['T'] * s['K'], experts = s['e'], blocks = ceil_div(count, kSortBlock);
    uint64_t const local = workspace.take(4 * count);
    uint64_t const counts = workspace.take(4 * blocks * experts);
    uint64_t const first = workspace.take(4 * blocks * experts);
    Rows const rows{count, workspace.take(4 * count), workspace.take(4 * count),
                    workspace.take(4 * (experts + 1))};
    launches.zero(rows.offsets, 4);  // the others are written by permute/offsets
    launches.run("permute/count", blocks, 1,
                 {p(t.in[1]), p(t.in[3]), p(local), p(counts), i(count), i(s['E']), i(experts)});
    launches.run("permute/offsets", 1, 1,
                 {p(counts), p(first), p(rows.offsets), i(blocks), i(experts)});
    launches.run("permute/place", blocks, 1,
                 {p(local), p(first), p(rows.destination), p(rows.tokens), i(count), i(s['K']),
                  i(experts)});
    return rows;
}

// The product of each expert's rows x [R, depth] with its weight [columns, depth], both with scales
// if they are FP8 (addresses, else 0).
struct Product {
    uint64_t x, x_scales, w, w_scales, y;
    int64_t columns, depth;
};

inline void multiply(Launches& launches, Product const& a, Rows const& rows, int64_t experts,
                     size_t tile, uint64_t scratch) {
    Tile const& shape = kTiles[tile];
    int64_t const filled = rows.count < experts ? rows.count : experts;
    int64_t const most = rows.count / shape.rows + filled;  // rows of tiles, whatever the offsets
    int64_t const tiles = most * ceil_div(a.columns, shape.columns);
    Arguments arguments = {p(a.x), p(a.w), p(a.y), p(rows.offsets)};
    if (a.x_scales)
        arguments = {p(a.x), p(a.x_scales), p(a.w), p(a.w_scales), p(a.y), p(rows.offsets)};
    for (Argument const& size : {i(rows.count), i(experts), i(a.columns), i(a.depth)})
        arguments.push_back(size);
    arguments.push_back(l(a.columns * a.depth));
    if (a.x_scales) arguments.push_back(i(rows.count));
    std::string const name = a.x_scales ? std::string("fp8.") + shape.fp8
                                        : std::string("bf16.") + shape.bf16;
    launches.run("moe_gemm/" + name, programs(tiles), 1, std::move(arguments), scratch);
}

inline void combine(Launches& launches, Sizes const& s, Tensors const& t, uint64_t y,
                    Rows const& rows) {
    launches.run("combine/bf16.k" + std::to_string(s['K']), s['T'], ceil_div(s['D'], kSumColumns),
                 {p(y), p(rows.destination), p(t.in[2]), p(t.out[0]), i(s['D'])});
}

inline void moe(Launches& launches, Sizes const& s, size_t tile, Tensors const& t,
                Workspace& workspace) {
    Rows const rows = permute(launches, s, t, workspace);
    int64_t const count = rows.count, hidden = s['D'], inner = s['I'], experts = s['e'];
    uint64_t const x = workspace.take(2 * count * hidden);  // and what the experts give
    uint64_t const gate = workspace.take(2 * count * inner), up = workspace.take(2 * count * inner);
    uint64_t const h = workspace.take(2 * count * inner), scratch = take_scratch(workspace);
    launches.run("permute/gather", count, ceil_div(hidden, kGatherColumns),
                 {p(t.in[0]), p(rows.tokens), p(x), i(s['T']), i(hidden)});
    multiply(launches, {x, 0, t.in[4], 0, gate, inner, hidden}, rows, experts, tile, scratch);
    multiply(launches, {x, 0, t.in[5], 0, up, inner, hidden}, rows, experts, tile, scratch);
    launches.run("swiglu_quant/plain", count, ceil_div(inner, kSwigluColumns),
                 {p(gate), p(up), p(h), i(inner)});
    multiply(launches, {h, 0, t.in[6], 0, x, hidden, inner}, rows, experts, tile, scratch);
    combine(launches, s, t, x, rows);
}

inline void fp8_moe(Launches& launches, Sizes const& s, size_t tile, Tensors const& t,
                    Workspace& workspace) {
    Rows const rows = permute(launches, s, t, workspace);
    int64_t const count = rows.count, hidden = s['D'], inner = s['I'], experts = s['e'];
    int64_t const groups = ceil_div(hidden, 128), inner_groups = ceil_div(inner, 128);
    uint64_t const x = workspace.take(2 * count * hidden);  // codes, then what the experts give
    uint64_t const scales = workspace.take(4 * groups * count);
    uint64_t const gate = workspace.take(2 * count * inner), up = workspace.take(2 * count * inner);
    uint64_t const h = workspace.take(count * inner);
    uint64_t const h_scales = workspace.take(4 * inner_groups * count);
    uint64_t const scratch = take_scratch(workspace);
    launches.run("act_quant/bf16.float32.rows", ceil_div(count, kQuantRows), groups,
                 {p(t.in[0]), p(x), p(scales), i(s['T']), i(count), i(hidden), i(1), i(count),
                  p(rows.tokens)});
    multiply(launches, {x, scales, t.in[4], t.in[5], gate, inner, hidden}, rows, experts, tile,
             scratch);
    multiply(launches, {x, scales, t.in[6], t.in[7], up, inner, hidden}, rows, experts, tile,
             scratch);
    launches.run("swiglu_quant/bf16", ceil_div(count, kQuantRows), inner_groups,
                 {p(gate), p(up), p(h), p(h_scales), i(count), i(inner)});
    multiply(launches, {h, h_scales, t.in[8], t.in[9], x, hidden, inner}, rows, experts, tile,
             scratch);
    combine(launches, s, t, x, rows);
}

}  // namespace dstools
