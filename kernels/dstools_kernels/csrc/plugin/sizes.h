// The four ops: their tensors, and the sizes that shapes agree on.
#pragma once

#include <array>

#include "launch.h"

namespace dstools {

enum class Type { kFloat, kHalf, kBf16, kFp8, kInt32, kOther };

struct Tensor {
    char const* name;
    char type;         // x: float32, float16 or BF16, as the first input; 8: E4M3; f: float32; i: int32
    char const* dims;  // a letter each; 1 is 1
};

// Letters of attention: T new tokens, H heads, C latent with rotated key, L rank, P pages of the
// pool, S tokens of a page, B rows, b = B + 1, N pages of a row. Of experts: T tokens, D hidden,
// K chosen, E experts, e those of this rank, I inner, d and i the 128-blocks of D and I. Of the
// product: T tokens, K in, N out, k and n their 128-blocks.
struct Op {
    char const* name;
    std::vector<Tensor> inputs, outputs;
    char const* blocks;  // pairs of a letter and the one that it is the 128-blocks of
    int aliased;         // the input that output 1 is, or -1
};

enum OpIndex { kMla, kMoe, kFp8Moe, kFp8Linear, kOps };

inline Op const& op_at(int index) {
    static Op const ops[kOps] = {
        {"DsMlaAttention",
         {{"q", 'x', "THC"},
          {"latent", 'x', "TC"},
          {"cache", 'x', "PS1C"},
          {"cumulative", 'i', "b"},
          {"past", 'i', "B"},
          {"table", 'i', "BN"}},
         {{"o", 'x', "THL"}, {"cache_out", 'x', "PS1C"}},
         "",
         2},
        {"DsMoE",
         {{"x", 'x', "TD"},
          {"ids", 'i', "TK"},
          {"weights", 'f', "TK"},
          {"expert_map", 'i', "E"},
          {"w1", 'x', "eID"},
          {"w3", 'x', "eID"},
          {"w2", 'x', "eDI"}},
         {{"y", 'x', "TD"}},
         "",
         -1},
        {"DsFp8BlockMoE",
         {{"x", 'x', "TD"},
          {"ids", 'i', "TK"},
          {"weights", 'f', "TK"},
          {"expert_map", 'i', "E"},
          {"w1", '8', "eID"},
          {"s1", 'f', "eid"},
          {"w3", '8', "eID"},
          {"s3", 'f', "eid"},
          {"w2", '8', "eDI"},
          {"s2", 'f', "edi"}},
         {{"y", 'x', "TD"}},
         "dDiI",
         -1},
        {"DsFp8BlockLinear",
         {{"x", 'x', "TK"}, {"w", '8', "NK"}, {"scale_inv", 'f', "nk"}},
         {{"y", 'x', "TN"}},
         "kKnN",
         -1},
    };
    return ops[index];
}

inline bool is_float(Type type) {
    return type == Type::kFloat || type == Type::kHalf || type == Type::kBf16;
}

// Return whether a tensor of an op whose first input is of type `x` may be of this type.
inline bool is_supported(Tensor const& tensor, Type type, Type x) {
    switch (tensor.type) {
        case 'x': return type == x && is_float(type);
        case '8': return type == Type::kFp8;
        case 'f': return type == Type::kFloat;
        default: return type == Type::kInt32;
    }
}

using Shape = std::vector<int64_t>;

struct Sizes {
    std::array<int64_t, 128> of{};
    int64_t operator[](char letter) const { return of[static_cast<size_t>(letter)]; }
    int64_t& operator[](char letter) { return of[static_cast<size_t>(letter)]; }
};

inline std::string text_of(Shape const& shape) {
    std::string text = "[";
    for (size_t at = 0; at < shape.size(); at++)
        text += (at ? ", " : "") + std::to_string(shape[at]);
    return text + "]";
}

// Return the largest value that the inputs give each letter, and the rank of attention.
// Raises Error where a tensor has another number of dimensions than its op says and, if is_exact,
// where two disagree on a letter, or scales do not fit their weight. The largest shapes of a
// profile are not exact: each input has its own.
inline Sizes sizes_of(Op const& op, std::vector<Shape> const& inputs, bool is_exact,
                      int32_t rank) {
    Sizes sizes;
    sizes['L'] = rank;
    std::array<bool, 128> is_known{};
    for (size_t at = 0; at < op.inputs.size(); at++) {
        Tensor const& tensor = op.inputs[at];
        std::string const which = std::string(op.name) + ": " + tensor.name + " " +
                                  text_of(inputs[at]);
        if (inputs[at].size() != std::strlen(tensor.dims))
            throw Error(which + " must have " + std::to_string(std::strlen(tensor.dims)) +
                        " dimensions");
        for (size_t d = 0; d < inputs[at].size(); d++) {
            char const letter = tensor.dims[d];
            int64_t const size = inputs[at][d];
            bool const has_other = letter == '1' ? size != 1
                                                 : is_known[static_cast<size_t>(letter)] &&
                                                       sizes[letter] != size;
            if (is_exact && has_other)
                throw Error(which + " does not fit the other inputs in dimension " +
                            std::to_string(d));
            is_known[static_cast<size_t>(letter)] = true;
            sizes[letter] = sizes[letter] > size ? sizes[letter] : size;
        }
    }
    for (char const* pair = op.blocks; is_exact && *pair; pair += 2)
        if (sizes[pair[0]] != ceil_div(sizes[pair[1]], 128))
            throw Error(std::string(op.name) + ": scales of " + std::to_string(sizes[pair[0]]) +
                        " blocks do not fit a weight of " + std::to_string(sizes[pair[1]]));
    if (is_exact && sizes['b'] && sizes['b'] != sizes['B'] + 1)
        throw Error(std::string(op.name) + ": cumulative must have one number more than past");
    return sizes;
}

// Raise Error where a tensor has 2^31 elements or more: no engine has shown that TensorRT counts
// further.
inline void refuse_large(Op const& op, Tensor const& tensor, Shape const& shape) {
    int64_t elements = 1;
    for (int64_t const size : shape) {
        if (size == 0) return;
        if (elements > std::numeric_limits<int32_t>::max() / size)
            throw Error(std::string(op.name) + ": " + tensor.name + " " + text_of(shape) +
                        " has more than 2^31 - 1 elements");
        elements *= size;
    }
}

}  // namespace dstools
