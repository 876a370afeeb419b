// DsMlaAttention: new latents written into their pages, then attention to all latents of a row, in
// splits that are merged.
#pragma once

#include "linear.h"

namespace dstools {

inline std::string why_not_mla(Sizes const& s, Type x) {
    if (x != Type::kBf16) return "there are kernels for BF16 alone";
    if (s['L'] != kRank || s['C'] != kWidth)
        return "there are kernels for latents of " + std::to_string(kRank) + " in " +
               std::to_string(kWidth) + " alone";
    if (s['S'] != kPageSize)
        return "there are kernels for pages of " + std::to_string(kPageSize) + " tokens alone";
    return "";
}

// A form of the attention: a kernel, and how many tokens a split has.
struct Attention {
    DecodeForm form;
    int64_t split_tokens;
};

inline size_t attention_count() { return kDecodeForms * kSplits; }

inline Attention attention_at(size_t index) {
    return {kForms[index / kSplits], kSplitTokens[index % kSplits]};
}

// Return whether a form may be worth a try: no larger than the first that holds all heads.
inline bool is_sensible(Attention const& attention, int64_t heads) {
    return attention.form.heads <= kForms[0].heads || attention.form.heads < 2 * heads;
}

// Return the form where no tactic was chosen: the largest sensible one, few splits for many heads,
// whose outputs are written and read once more.
inline size_t default_attention(int64_t heads) {
    size_t best = 0;
    for (size_t at = 0; at < attention_count(); at++) {
        bool const is_split = attention_at(at).split_tokens == kSplitTokens[heads > 16 ? 1 : 0];
        if (is_split && is_sensible(attention_at(at), heads)) best = at;
    }
    return best;
}

// How many tokens are taken at a time, and the splits of one at most.
struct Part {
    int64_t tokens, splits;
};

// Tokens are taken so many at a time that the outputs of their splits stay below a limit. That
// changes no bits: a token's splits depend on its own length alone.
inline Part part_of(Sizes const& s, int64_t split_tokens) {
    int64_t const splits = ceil_div(s['N'] * kPageSize, split_tokens);
    int64_t const fitting = kMaxPartialBytes / (4 * kRank * s['H'] * splits);
    int64_t const count = fitting < 1 ? 1 : fitting;
    return {count < s['T'] ? count : s['T'], splits};
}

inline void attend(Launches& launches, Sizes const& s, Attention const& attention, float scale,
                   Tensors const& t, Workspace& workspace) {
    int64_t const tokens = s['T'], heads = s['H'], rows = s['B'], width = s['N'], pages = s['P'];
    Part const part = part_of(s, attention.split_tokens);
    int64_t const capacity = part.splits * part.tokens, split = attention.split_tokens;
    uint64_t const lengths = workspace.take(4 * rows), slots = workspace.take(8 * tokens);
    uint64_t const row = workspace.take(4 * part.tokens), seen = workspace.take(4 * part.tokens);
    uint64_t const offsets = workspace.take(4 * (part.tokens + 1));
    uint64_t const partial = workspace.take(4 * capacity * heads * kRank);
    uint64_t const lse = workspace.take(4 * capacity * heads);
    launches.run("latent_pages/lengths", ceil_div(rows, kSlotBlock), 1,
                 {p(t.in[4]), p(t.in[3]), p(lengths), i(rows)});
    launches.run("latent_pages/slots", ceil_div(tokens, kSlotBlock), 1,
                 {p(t.in[5]), p(lengths), p(t.in[3]), p(slots), i(rows), i(tokens), i(width),
                  i(pages), i(kPageSize)});
    launches.run("latent_pages/bf16", tokens, 1,
                 {p(t.in[1]), p(t.in[2]), p(slots), i(pages * kPageSize)});
    int64_t const programs = 2 * ceil_div(heads, attention.form.heads);
    for (int64_t first = 0; first < tokens; first += part.tokens) {
        int64_t const count = tokens - first < part.tokens ? tokens - first : part.tokens;
        uint64_t const q = t.in[0] + static_cast<uint64_t>(2 * first * heads * kWidth);
        uint64_t const o = t.out[0] + static_cast<uint64_t>(2 * first * heads * kRank);
        launches.run("mla_decode/plan", 1, 1,
                     {p(lengths), p(t.in[3]), p(row), p(seen), p(offsets), i(rows), i(first),
                      i(count), i(width * kPageSize), i(split)});
        launches.run(attention.form.name, count * programs, part.splits,
                     {p(q), p(t.in[2]), p(t.in[5]), p(row), p(seen), p(offsets), p(partial), p(lse),
                      f(scale), i(heads), i(pages), i(width), i(split), i(capacity)});
        launches.run("mla_merge/512", count * heads, 1,
                     {p(partial), p(lse), p(offsets), p(o), i(heads), i(capacity)});
    }
}

// Launch all of it; where no row has a page there is nothing to see, and the output is 0.
inline void mla(Launches& launches, Sizes const& s, Attention const& attention, float scale,
                Tensors const& t, Workspace& workspace) {
    if (s['H'] == 0) return;
    if (s['B'] == 0 || s['N'] == 0 || s['P'] == 0)
        launches.zero(t.out[0], 2 * s['T'] * s['H'] * kRank);
    else
        attend(launches, s, attention, scale, t, workspace);
}

// Return the bytes of workspace for all shapes up to these. Parts of fewer pages a row may hold more
// splits than those of the most, but never more than the limit allows.
inline uint64_t mla_workspace(Sizes const& s) {
    Workspace workspace(0);
    int64_t splits = 1;
    for (int64_t const split_tokens : kSplitTokens) {
        int64_t const most = ceil_div(s['N'] * kPageSize, split_tokens);
        splits = splits > most ? splits : most;
    }
    int64_t const heads = s['H'] > 1 ? s['H'] : 1, tokens = s['T'];
    int64_t const allowed = kMaxPartialBytes / (4 * kRank * heads);
    int64_t capacity = allowed > splits ? allowed : splits;
    if (splits * tokens < capacity) capacity = splits * tokens;
    workspace.take(4 * s['B']);
    workspace.take(8 * tokens);
    for (int64_t const count : {tokens, tokens, tokens + 1}) workspace.take(4 * count);
    workspace.take(4 * capacity * heads * kRank);
    workspace.take(4 * capacity * heads);
    return workspace.bytes();
}

}  // namespace dstools
