// Host logic of the TensorRT plugins, without TensorRT and CUDA.
//
//     host check                                                  the checks below; 1 if one fails
//     host launches OP TYPE TACTIC SCALE RANK SHAPE...            a line for each launch
//     host workspace OP TYPE RANK SHAPE...                        its bytes
//
// A SHAPE is 3x4x5. Tensors begin at multiples of 1 << 40, inputs first, and the workspace at
// 64 << 40, so that each address tells what it belongs to.
#include <cstdio>
#include <cstdlib>

#include "ops.h"

using namespace dstools;

namespace {

int failures = 0;

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            std::printf("line %d: %s\n", __LINE__, #condition);              \
            failures++;                                                      \
        }                                                                    \
    } while (0)

// Return the sentence of the Error that `body` raises, or "".
template <class Body>
std::string raised(Body const& body) {
    try {
        body();
    } catch (Error const& error) {
        return error.what();
    }
    return "";
}

bool contains(std::string const& text, char const* part) {
    return text.find(part) != std::string::npos;
}

constexpr uint64_t kPlace = 1ULL << 40, kWorkspace = 64 * kPlace;

Tensors placed(int op) {
    Tensors tensors;
    uint64_t next = 1;
    for (size_t at = 0; at < op_at(op).inputs.size(); at++) tensors.in.push_back(kPlace * next++);
    for (size_t at = 0; at < op_at(op).outputs.size(); at++) tensors.out.push_back(kPlace * next++);
    if (op_at(op).aliased >= 0) tensors.out[1] = tensors.in[static_cast<size_t>(op_at(op).aliased)];
    return tensors;
}

// ------------------------------------------------------------------------------------- the checks

void check_launch() {
    CHECK(ceil_div(0, 4) == 0 && ceil_div(1, 4) == 1 && ceil_div(4, 4) == 1 && ceil_div(5, 4) == 2);
    CHECK(i(-5).int32 == -5 && l(1LL << 40).int64 == 1LL << 40 && f(0.5F).float32 == 0.5F);
    CHECK(contains(raised([] { i(1LL << 31); }), "2147483648 does not fit"));
    CHECK(contains(raised([] { i(-(1LL << 31) - 1); }), "does not fit"));
    CHECK(i((1LL << 31) - 1).int32 == 2147483647 && i(-(1LL << 31)).int32 < 0);
    CHECK(is_divisible(p(32)) && !is_divisible(p(8)) && is_divisible(i(16)) && !is_divisible(i(24)));
    CHECK(is_divisible(l(1LL << 40)) && !is_divisible(l(8)) && !is_divisible(f(16)));
    Workspace workspace(4096);
    CHECK(workspace.take(1) == 4096 && workspace.take(256) == 4352 && workspace.take(257) == 4608);
    CHECK(workspace.take(0) == 5120 && workspace.bytes() == 1024);
    CHECK(workspace.is_aligned() && !Workspace(64).is_aligned());
}

void check_fallback() {
    Kernel const table[] = {{"a", "a", "PIf", 32, 0, 0, ""},
                            {"a.unaligned", "a", "Pif", 32, 0, 0, ""},
                            {"b", "b", "PL", 32, 0, 0, ""}};
    auto const name = [&](char const* wanted, Arguments const& arguments) {
        return std::string(fitting(table, 3, wanted, arguments).name);
    };
    CHECK(name("a", {p(16), i(32), f(1)}) == "a");
    CHECK(name("a", {p(16), i(8), f(1)}) == "a.unaligned");
    CHECK(name("b", {p(0), l(48)}) == "b");
    auto const why = [&](char const* wanted, Arguments const& arguments) {
        return raised([&] { fitting(table, 3, wanted, arguments); });
    };
    CHECK(why("a", {p(8), i(32), f(1)}) == "kernel a: argument 0 is not divisible by 16");
    CHECK(why("b", {p(16), l(8)}) == "kernel b: argument 1 is not divisible by 16");
    CHECK(why("b", {p(16), i(16)}) == "kernel b: argument 1 is of another kind");
    CHECK(why("b", {p(16)}) == "kernel b: it takes 2 arguments, not 1");
    CHECK(why("c", {}) == "kernel c: it is not in the library");
}

void check_sizes() {
    Op const& moe = op_at(kFp8Moe);
    std::vector<Shape> const shapes = {{5, 256},      {5, 2},       {5, 2},       {16},
                                       {4, 192, 256}, {4, 2, 2},    {4, 192, 256}, {4, 2, 2},
                                       {4, 256, 192}, {4, 2, 2}};
    Sizes const sizes = sizes_of(moe, shapes, true, 0);
    CHECK(sizes['T'] == 5 && sizes['D'] == 256 && sizes['K'] == 2 && sizes['E'] == 16);
    CHECK(sizes['e'] == 4 && sizes['I'] == 192);
    auto const why = [&](size_t input, Shape const& shape) {
        std::vector<Shape> others = shapes;
        others[input] = shape;
        return raised([&] { sizes_of(moe, others, true, 0); });
    };
    CHECK(why(1, {6, 2}) == "DsFp8BlockMoE: ids [6, 2] does not fit the other inputs in dimension 0");
    CHECK(contains(why(8, {4, 256, 191}), "w2 [4, 256, 191] does not fit"));
    CHECK(contains(why(4, {192, 256}), "w1 [192, 256] must have 3 dimensions"));
    CHECK(contains(why(5, {4, 1, 2}), "does not fit"));
    std::vector<Shape> scaled = shapes;
    scaled[5] = scaled[7] = {4, 1, 2};
    scaled[9] = {4, 2, 1};
    CHECK(contains(raised([&] { sizes_of(moe, scaled, true, 0); }), "scales of 1 blocks do not fit"));
    std::vector<Shape> const cached = {{3, 2, 576}, {3, 576}, {9, 64, 1, 576}, {3}, {2}, {2, 4}};
    Sizes const attention = sizes_of(op_at(kMla), cached, true, 512);
    CHECK(attention['L'] == 512 && attention['P'] == 9 && attention['N'] == 4);
    std::vector<Shape> other = cached;
    other[3] = {4};
    CHECK(contains(raised([&] { sizes_of(op_at(kMla), other, true, 512); }), "one number more"));
    CHECK(sizes_of(op_at(kMla), other, false, 512)['b'] == 4);  // a profile's largest
    other[4] = {7};
    CHECK(sizes_of(op_at(kMla), other, false, 512)['B'] == 7);
    other = cached;
    other[2] = {9, 64, 2, 576};
    CHECK(contains(raised([&] { sizes_of(op_at(kMla), other, true, 512); }), "dimension 2"));
    Op const& linear = op_at(kFp8Linear);
    CHECK(raised([&] { refuse_large(linear, linear.inputs[1], {1 << 15, (1 << 16) - 1}); }).empty());
    CHECK(raised([&] { refuse_large(linear, linear.inputs[1], {1 << 15, 1 << 16}); }) ==
          "DsFp8BlockLinear: w [32768, 65536] has more than 2^31 - 1 elements");
}

void check_types() {
    Op const& moe = op_at(kFp8Moe);
    for (Type const x : {Type::kFloat, Type::kHalf, Type::kBf16}) {
        CHECK(is_supported(moe.inputs[0], x, x) && is_supported(moe.outputs[0], x, x));
        CHECK(!is_supported(moe.outputs[0], x == Type::kHalf ? Type::kBf16 : Type::kHalf, x));
        CHECK(is_supported(moe.inputs[4], Type::kFp8, x) && !is_supported(moe.inputs[4], x, x));
        CHECK(is_supported(moe.inputs[5], Type::kFloat, x));
        CHECK(is_supported(moe.inputs[1], Type::kInt32, x) && !is_supported(moe.inputs[1], x, x));
    }
    CHECK(!is_supported(moe.inputs[5], Type::kHalf, Type::kHalf));
    CHECK(!is_supported(moe.inputs[0], Type::kInt32, Type::kInt32));
    CHECK(!is_supported(moe.inputs[4], Type::kOther, Type::kBf16));
    CHECK(op_at(kMla).aliased == 2 && op_at(kMoe).aliased == -1);
}

Sizes sized(std::initializer_list<std::pair<char, int64_t>> letters) {
    Sizes sizes;
    for (auto const& [letter, size] : letters) sizes[letter] = size;
    return sizes;
}

Sizes attention(int64_t tokens, int64_t heads, int64_t rows, int64_t width, int64_t pages) {
    return sized({{'T', tokens}, {'H', heads}, {'C', 576}, {'L', 512}, {'S', 64},
                  {'B', rows}, {'b', rows + 1}, {'N', width}, {'P', pages}});
}

Sizes experts(int64_t tokens, int64_t hidden, int64_t inner, int64_t chosen, int64_t local) {
    return sized({{'T', tokens}, {'D', hidden}, {'I', inner}, {'K', chosen}, {'e', local}, {'E', 256}});
}

void check_reasons() {
    Type const bf16 = Type::kBf16;
    Sizes a = attention(1, 16, 1, 1, 1);
    CHECK(why_not(kMla, a, bf16).empty());
    CHECK(contains(why_not(kMla, a, Type::kFloat), "BF16 alone"));
    for (auto const& [letter, size] : {std::pair{'L', 32}, {'C', 64}, {'S', 32}}) {
        Sizes other = a;
        other[letter] = size;
        CHECK(contains(why_not(kMla, other, bf16), "there are kernels for"));
    }
    for (int const op : {static_cast<int>(kMoe), static_cast<int>(kFp8Moe)}) {
        CHECK(why_not(op, experts(1, 256, 128, 8, 256), bf16).empty());
        CHECK(contains(why_not(op, experts(1, 256, 128, 8, 32), Type::kHalf), "BF16 alone"));
        CHECK(contains(why_not(op, experts(1, 256, 128, 9, 32), bf16), "1 to 8 experts a token"));
        CHECK(contains(why_not(op, experts(1, 256, 128, 0, 32), bf16), "1 to 8 experts a token"));
        CHECK(contains(why_not(op, experts(1, 256, 128, 8, 257), bf16), "1 to 256 experts"));
        CHECK(contains(why_not(op, experts(1, 256, 128, 8, 0), bf16), "1 to 256 experts"));
        CHECK(contains(why_not(op, experts(1, 252, 128, 8, 1), bf16), "divisible by"));
        CHECK(contains(why_not(op, experts(1, 256, 132, 8, 1), bf16), "divisible by"));
        CHECK(why_not(op, experts(1, 8, 8, 8, 1), bf16).empty() == (op == kMoe));
    }
    Sizes linear = sized({{'T', 1}, {'K', 144}, {'N', 24}});
    CHECK(why_not(kFp8Linear, linear, bf16).empty());
    CHECK(why_not(kFp8Linear, linear, Type::kFloat).empty());
    CHECK(!why_not(kFp8Linear, linear, Type::kHalf).empty());
    linear['K'] = 152;
    CHECK(!why_not(kFp8Linear, linear, bf16).empty());
    linear['K'] = 144, linear['N'] = 28;
    CHECK(!why_not(kFp8Linear, linear, bf16).empty());
}

void check_tactics() {
    auto const of = [](int64_t heads) { return tactics(kMla, attention(1, heads, 1, 1, 1), Type::kBf16); };
    CHECK((of(16) == std::vector<int32_t>{1, 2}));
    CHECK((of(64) == std::vector<int32_t>{1, 2, 3, 4}));
    CHECK((of(128) == std::vector<int32_t>{1, 2, 3, 4, 5, 6}));
    CHECK((of(4) == std::vector<int32_t>{1, 2}));
    CHECK(tactics(kMla, attention(1, 16, 1, 1, 1), Type::kHalf).empty());
    CHECK((tactics(kFp8Moe, experts(1, 256, 128, 8, 32), Type::kBf16) == std::vector<int32_t>{1, 2}));
    CHECK(is_tactic(kMla, 0) && is_tactic(kMla, 6) && !is_tactic(kMla, 7) && !is_tactic(kMla, -1));
    CHECK(is_tactic(kMoe, 2) && !is_tactic(kMoe, 3));
    auto const form = [](int64_t heads) { return attention_at(default_attention(heads)); };
    CHECK(form(16).form.heads == 16 && form(16).split_tokens == 256);
    CHECK(form(17).form.heads == 16 && form(17).split_tokens == 1024);
    CHECK(form(64).form.heads == 64 && form(128).form.heads == 128 && form(4).form.heads == 16);
    CHECK(default_tile(kMostSmallRows) == 0 && default_tile(kMostSmallRows + 1) == 1);
    CHECK(programs(5) == 5 && programs(1000) == static_cast<uint32_t>(kPrograms));
}

std::vector<Launch> listed(int op, Sizes const& sizes, int32_t tactic, Workspace& workspace,
                           Type x = Type::kBf16) {
    return launches_of(op, sizes, x, tactic, {0.1F, 512}, placed(op), workspace);
}

// Return whether all that is launched stays within the workspace that is asked for at `most`.
bool fits(int op, Sizes const& sizes, Sizes const& most) {
    uint64_t const allowed = workspace_bytes(op, most, Type::kBf16);
    std::vector<int32_t> numbers = tactics(op, sizes, Type::kBf16);
    numbers.push_back(0);
    for (int32_t const tactic : numbers) {
        Workspace workspace(kWorkspace);
        auto const list = listed(op, sizes, tactic, workspace);
        if (workspace.bytes() > allowed) return false;
        for (Launch const& launch : list) {
            uint64_t const blocks = uint64_t{launch.grid[0]} * launch.grid[1];
            uint64_t const scratch = launch.kernel ? launch.kernel->scratch_bytes * blocks : 0;
            if (scratch && launch.scratch + scratch > kWorkspace + workspace.bytes()) return false;
            if (scratch && (launch.scratch < kWorkspace || launch.scratch % 128)) return false;
        }
    }
    return true;
}

void check_workspace() {
    std::srand(0);
    auto const upto = [](int64_t most) { return 1 + std::rand() % most; };
    for (int round = 0; round < 100; round++) {
        int64_t const heads = std::array<int64_t, 4>{1, 16, 64, 128}[round % 4];
        Sizes const most = attention(upto(9000), heads, upto(300), upto(3000), upto(9000));
        Sizes sizes = most;
        for (char const letter : {'T', 'B', 'N', 'P'}) sizes[letter] = upto(most[letter]);
        CHECK(fits(kMla, sizes, most));
        for (int const op : {static_cast<int>(kMoe), static_cast<int>(kFp8Moe)}) {
            Sizes const all = experts(upto(5000), 16 * upto(100), 16 * upto(100), upto(8), upto(256));
            Sizes some = all;
            some['T'] = upto(all['T']);
            CHECK(fits(op, some, all));
        }
        Sizes const all = sized({{'T', upto(5000)}, {'K', 16 * upto(500)}, {'N', 8 * upto(500)}});
        Sizes some = all;
        some['T'] = upto(all['T']);
        CHECK(fits(kFp8Linear, some, all));
    }
    // parts of 51 splits hold one token, of 50 splits two: more than one of 51
    Sizes const most = attention(4096, 128, 1, 4 * 2049, 1), fewer = attention(4096, 128, 1, 4 * 1366, 1);
    CHECK(part_of(most, 256).tokens * part_of(most, 256).splits <
          part_of(fewer, 256).tokens * part_of(fewer, 256).splits);
    CHECK(fits(kMla, fewer, most));
    CHECK(workspace_bytes(kMla, most, Type::kHalf) == 0);
    // a workspace of V3: 128 new tokens of 4096 each, and the experts of 128 tokens
    CHECK(workspace_bytes(kMla, attention(128, 128, 128, 64, 8192), Type::kBf16) < 600ULL << 20);
    CHECK(workspace_bytes(kFp8Moe, experts(128, 7168, 2048, 8, 32), Type::kBf16) < 32ULL << 20);
}

void check_launches() {
    Workspace workspace(kWorkspace);
    auto const none = listed(kMla, attention(3, 16, 0, 1, 1), 0, workspace);
    CHECK(none.size() == 1 && !none[0].kernel && none[0].bytes == 2 * 3 * 16 * 512);
    CHECK(listed(kMla, attention(3, 16, 2, 0, 1), 0, workspace).size() == 1);
    CHECK(listed(kMla, attention(3, 16, 2, 1, 0), 0, workspace).size() == 1);
    CHECK(listed(kMla, attention(3, 0, 2, 1, 1), 0, workspace).empty());
    CHECK(contains(raised([&] { listed(kMla, attention(3, 16, 2, 1, 1), 0, workspace, Type::kHalf); }),
                   "DsMlaAttention: there are kernels for BF16 alone"));
    Sizes const many = attention(5000, 128, 2, 64, 100);  // 4 splits of 1024: 1024 tokens at a time
    auto const list = listed(kMla, many, 6, workspace);
    CHECK(list.size() == 3 + 3 * 5);
    CHECK(list[7].arguments[0].address == kPlace + 2 * 1024 * 128 * 576);
    CHECK(list[8].arguments[3].address == 7 * kPlace + 2 * 1024 * 128 * 512);
    CHECK(list[6].arguments[6].int32 == 1024 && list[15].arguments[7].int32 == 904);
    CHECK(part_of(attention(9, 128, 1, 20000, 1), 256).tokens == 1);  // a token may pass the limit
    CHECK(list[4].grid[0] == 1024 * 2 && list[4].grid[1] == 4 && list[16].grid[0] == 904 * 2);
    CHECK(contains(raised([&] { listed(kMla, attention(1, 128, 1, 1 << 19, 1), 5, workspace); }),
                   "its grid is too large"));
    for (Launch const& launch : list) CHECK(launch.kernel->scratch_bytes == 0);
}

// ------------------------------------------------------------------------------- what is printed

// Return e.g. t2+64, of the tensors in order, or ws+256, of the workspace.
std::string place(uint64_t address) {
    if (address >= kWorkspace) return "ws+" + std::to_string(address - kWorkspace);
    return "t" + std::to_string(address / kPlace - 1) + "+" + std::to_string(address % kPlace);
}

std::string number(Argument const& argument) {
    switch (argument.kind) {
        case 'p': return place(argument.address);
        case 'i': return std::to_string(argument.int32);
        case 'l': return std::to_string(argument.int64);
        default: return std::to_string(argument.float32);
    }
}

Shape shape_from(std::string const& text) {
    Shape shape;
    for (char const* at = text.c_str(); *at; at += *at == 'x') {
        char* end = nullptr;
        shape.push_back(std::strtoll(at, &end, 10));
        at = end;
    }
    return shape;
}

int index_from(std::string const& name) {
    for (int op = 0; op < kOps; op++)
        if (name == op_at(op).name) return op;
    throw Error("no op " + name);
}

Type type_from(std::string const& name) {
    return name == "bf16" ? Type::kBf16 : name == "f32" ? Type::kFloat : Type::kHalf;
}

int print_launches(char** words, int count) {
    int const op = index_from(words[0]);
    std::vector<Shape> shapes;
    for (int at = 5; at < count; at++) shapes.push_back(shape_from(words[at]));
    Attributes const attributes{std::stof(words[3]), std::stoi(words[4])};
    Sizes const sizes = sizes_of(op_at(op), shapes, true, attributes.rank);
    Workspace workspace(kWorkspace);
    auto const list = launches_of(op, sizes, type_from(words[1]), std::stoi(words[2]), attributes,
                                  placed(op), workspace);
    for (Launch const& launch : list) {
        if (launch.kernel)
            std::printf("%s %ux%u %s", launch.kernel->name, launch.grid[0], launch.grid[1],
                        launch.kernel->arguments);
        else
            std::printf("zero %llux1 p", static_cast<unsigned long long>(launch.bytes));
        for (Argument const& argument : launch.arguments) std::printf(" %s", number(argument).c_str());
        std::printf("%s\n", launch.scratch ? " scratch" : "");
    }
    return 0;
}

int print_workspace(char** words, int count) {
    int const op = index_from(words[0]);
    std::vector<Shape> shapes;
    for (int at = 3; at < count; at++) shapes.push_back(shape_from(words[at]));
    Sizes const sizes = sizes_of(op_at(op), shapes, false, std::stoi(words[2]));
    std::printf("%llu\n", static_cast<unsigned long long>(
                              workspace_bytes(op, sizes, type_from(words[1]))));
    return 0;
}

}  // namespace

int main(int count, char** words) {
    std::string const command = count > 1 ? words[1] : "";
    if (command == "launches") return print_launches(words + 2, count - 2);
    if (command == "workspace") return print_workspace(words + 2, count - 2);
    check_launch();
    check_fallback();
    check_sizes();
    check_types();
    check_reasons();
    check_tactics();
    check_workspace();
    check_launches();
    return failures ? 1 : 0;
}
