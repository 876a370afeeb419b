// DsFp8BlockLinear: activations quantized by rows and 128 columns, then the product of block FP8.
#pragma once

#include "kernels.h"
#include "sizes.h"

namespace dstools {

// The addresses of an op's inputs and outputs.
struct Tensors {
    std::vector<uint64_t> in, out;
};

// Return the tile of products with this many rows, where no tactic was chosen.
inline size_t default_tile(int64_t rows) { return rows <= kMostSmallRows ? 0 : 1; }

inline uint64_t take_scratch(Workspace& workspace) {
    return workspace.take(kPrograms * kMaxScratchBytes);
}

inline uint32_t programs(int64_t tiles) {
    return static_cast<uint32_t>(tiles < kPrograms ? tiles : kPrograms);
}

class Launches {
  public:
    void run(std::string const& name, int64_t x, int64_t y, Arguments arguments,
             uint64_t scratch = 0) {
        Kernel const& kernel = fitting(kKernels, kKernelCount, name, arguments);
        if (x > std::numeric_limits<int32_t>::max() || y > 65535)
            throw Error("kernel " + name + ": its grid is too large");
        uint32_t const grid[2] = {static_cast<uint32_t>(x), static_cast<uint32_t>(y)};
        list.push_back({&kernel, {grid[0], grid[1]}, std::move(arguments), scratch, 0});
    }

    void zero(uint64_t address, int64_t bytes) {
        list.push_back({nullptr, {0, 0}, {p(address)}, 0, static_cast<uint64_t>(bytes)});
    }

    std::vector<Launch> list;
};

inline std::string why_not_linear(Sizes const& s, Type x) {
    if (x != Type::kBf16 && x != Type::kFloat) return "there are kernels for BF16 and float32 alone";
    if (s['K'] % 16 || s['N'] % 8) return "K must be divisible by 16, N by 8";
    return "";
}

inline void linear(Launches& launches, Sizes const& s, Type x, size_t tile, Tensors const& t,
                   Workspace& workspace) {
    int64_t const rows = s['T'], columns = s['N'], depth = s['K'], groups = ceil_div(depth, 128);
    uint64_t const codes = workspace.take(rows * depth), scales = workspace.take(4 * rows * groups);
    uint64_t const scratch = take_scratch(workspace);
    std::string const dtype = x == Type::kBf16 ? "bf16" : "fp32";
    launches.run("act_quant/" + dtype + ".float32", ceil_div(rows, kQuantRows), groups,
                 {p(t.in[0]), p(codes), p(scales), i(rows), i(rows), i(depth), i(1), i(rows)});
    Tile const& shape = kTiles[tile];
    int64_t const tiles = ceil_div(rows, shape.rows) * ceil_div(columns, shape.columns);
    launches.run(std::string("fp8_gemm/") + shape.fp8 + "." + dtype, programs(tiles), 1,
                 {p(codes), p(scales), p(t.in[1]), p(t.in[2]), p(t.out[0]), i(rows), i(columns),
                  i(depth), i(rows)},
                 scratch);
}

}  // namespace dstools
