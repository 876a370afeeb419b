// What each op launches for given shapes and a tactic, by the index of the op.
#pragma once

#include "mla.h"
#include "moe.h"

namespace dstools {

struct Attributes {
    float scale = 0;   // of attention's scores
    int32_t rank = 0;  // of its latents, L
};

// Return why there is no kernel for these sizes; empty where there is. An engine with such a node
// builds, so that a twin in another dtype can be checked, and fails when it runs.
inline std::string why_not(int op, Sizes const& sizes, Type x) {
    switch (op) {
        case kMla: return why_not_mla(sizes, x);
        case kMoe: return why_not_moe(sizes, x, false);
        case kFp8Moe: return why_not_moe(sizes, x, true);
        default: return why_not_linear(sizes, x);
    }
}

// Return the numbers of the tactics, none where there is no kernel. 1 is the first; 0 is the default.
inline std::vector<int32_t> tactics(int op, Sizes const& sizes, Type x) {
    std::vector<int32_t> numbers;
    if (!why_not(op, sizes, x).empty()) return numbers;
    size_t const count = op == kMla ? attention_count() : kTileCount;
    for (size_t at = 0; at < count; at++)
        if (op != kMla || is_sensible(attention_at(at), sizes['H']))
            numbers.push_back(static_cast<int32_t>(at) + 1);
    return numbers;
}

inline bool is_tactic(int op, int32_t tactic) {
    size_t const count = op == kMla ? attention_count() : kTileCount;
    return static_cast<size_t>(tactic) <= count;  // none below 0 is
}

// Return the launches of an op in order, within `workspace`.
// Raises Error where there is no kernel.
inline std::vector<Launch> launches_of(int op, Sizes const& s, Type x, int32_t tactic,
                                       Attributes const& attributes, Tensors const& tensors,
                                       Workspace& workspace) {
    std::string const why = why_not(op, s, x);
    if (!why.empty()) throw Error(std::string(op_at(op).name) + ": " + why);
    Launches launches;
    size_t const chosen = static_cast<size_t>(tactic) - 1;
    int64_t const rows = op == kFp8Linear ? s['T'] : s['T'] * s['K'] / (s['e'] > 1 ? s['e'] : 1);
    size_t const tile = tactic ? chosen : default_tile(rows);
    switch (op) {
        case kMla: {
            size_t const index = tactic ? chosen : default_attention(s['H']);
            mla(launches, s, attention_at(index), attributes.scale, tensors, workspace);
            break;
        }
        case kMoe: moe(launches, s, tile, tensors, workspace); break;
        case kFp8Moe: fp8_moe(launches, s, tile, tensors, workspace); break;
        default: linear(launches, s, x, tile, tensors, workspace);
    }
    return launches.list;
}

// Return the bytes of workspace for all shapes up to `most` and every tactic; 0 without a kernel.
inline uint64_t workspace_bytes(int op, Sizes const& most, Type x) {
    if (!why_not(op, most, x).empty()) return 0;
    if (op == kMla) return mla_workspace(most);
    Op const& tensors = op_at(op);
    Tensors const nowhere{std::vector<uint64_t>(tensors.inputs.size()),
                          std::vector<uint64_t>(tensors.outputs.size())};
    Workspace workspace(0);
    launches_of(op, most, x, 1, {}, nowhere, workspace);  // pieces do not depend on the tile
    return workspace.bytes();
}

}  // namespace dstools
