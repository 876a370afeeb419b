// The calls of TensorRT on the library, by a program that is not TensorRT.
//
//     calls LIBRARY COMMAND
//
// Prints what comes back; the lines of the library's own log begin with "log".
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

struct Log : ILogger {
    void log(Severity severity, char const* sentence) noexcept override {
        std::printf("log %d %s\n", static_cast<int>(severity), sentence);
    }
} logger;

struct Finder : ILoggerFinder {
    ILogger* findLogger() override { return &logger; }
} finder;

IPluginCreatorV3One* creator(std::string const& name, void* library) {
    int32_t count = 0;
    auto const creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
        dlsym(library, "getCreators"))(count);
    for (int32_t at = 0; at < count; at++) {
        auto* const one = static_cast<IPluginCreatorV3One*>(creators[at]);
        if (name == one->getPluginName()) return one;
    }
    return nullptr;
}

IPluginV3* create(IPluginCreatorV3One* from, std::vector<PluginField> fields) {
    PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return from->createPlugin("node", &collection, TensorRTPhase::kBUILD);
}

float const kScale = 0.25F;
int32_t const kRank = 512;
PluginField const kScaleField("scale", &kScale, PluginFieldType::kFLOAT32, 1);
PluginField const kRankField("rank", &kRank, PluginFieldType::kINT32, 1);

IPluginV3OneBuildV2* build_of(IPluginV3* plugin) {
    return static_cast<IPluginV3OneBuildV2*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
    return static_cast<IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

using Sizes = std::vector<int64_t>;

Dims dims_of(Sizes const& sizes) {
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t at = 0; at < sizes.size(); at++) dims.d[at] = sizes[at];
    return dims;
}

struct Node {
    std::vector<DataType> types;  // of inputs, then outputs
    std::vector<Sizes> shapes;
    int32_t inputs;

    std::vector<DynamicPluginTensorDesc> dynamic() const {
        std::vector<DynamicPluginTensorDesc> descs;
        for (size_t at = 0; at < types.size(); at++) {
            DynamicPluginTensorDesc desc{};
            desc.desc = {dims_of(shapes[at]), types[at], TensorFormat::kLINEAR, 1.0F};
            desc.min = desc.opt = desc.max = desc.desc.dims;
            descs.push_back(desc);
        }
        return descs;
    }
    std::vector<PluginTensorDesc> fixed() const {
        std::vector<PluginTensorDesc> descs;
        for (auto const& desc : dynamic()) descs.push_back(desc.desc);
        return descs;
    }
};

Node attention(int64_t tokens, DataType x = DataType::kBF16, int64_t pages = 9) {
    DataType const i = DataType::kINT32;
    return {{x, x, x, i, i, i, x, x},
            {{tokens, 16, 576}, {tokens, 576}, {pages, 64, 1, 576}, {4}, {3}, {3, 2},
             {tokens, 16, 512}, {pages, 64, 1, 576}},
            6};
}

Node linear(int64_t tokens, DataType x = DataType::kBF16) {
    return {{x, DataType::kFP8, DataType::kFLOAT, x},
            {{tokens, 256}, {384, 256}, {3, 2}, {tokens, 384}},
            3};
}

int32_t configure(IPluginV3* plugin, Node const& node) {
    auto const descs = node.dynamic();
    int32_t const outputs = static_cast<int32_t>(descs.size()) - node.inputs;
    return build_of(plugin)->configurePlugin(descs.data(), node.inputs, descs.data() + node.inputs,
                                             outputs);
}

void shape_change(IPluginV3* plugin, Node const& node) {
    auto const descs = node.fixed();
    int32_t const outputs = static_cast<int32_t>(descs.size()) - node.inputs;
    std::printf("onShapeChange %d\n", runtime_of(plugin)->onShapeChange(
        descs.data(), node.inputs, descs.data() + node.inputs, outputs));
}

// Enqueue on addresses 1 << 20, 2 << 20, ...; the aliased cache is input 2.
void enqueue(IPluginV3* plugin, Node const& node, size_t shift = 0, bool is_in_place = true,
             size_t workspace = 1UL << 30) {
    auto const descs = node.fixed();
    std::vector<void*> addresses;
    for (size_t at = 0; at < descs.size(); at++)
        addresses.push_back(reinterpret_cast<void*>(((at + 1) << 20) + shift));
    auto const inputs = static_cast<size_t>(node.inputs);
    if (inputs == 6 && is_in_place) addresses[7] = addresses[2];
    int32_t const result = runtime_of(plugin)->enqueue(
        descs.data(), descs.data() + inputs, addresses.data(), addresses.data() + inputs,
        reinterpret_cast<void*>(workspace), reinterpret_cast<cudaStream_t>(77));
    std::printf("enqueue %d\n", result);
}

void show_attributes(IPluginV3* plugin) {
    auto const* const fields = runtime_of(plugin)->getFieldsToSerialize();
    std::printf("fields %d", fields->nbFields);
    for (int32_t at = 0; at < fields->nbFields; at++) {
        PluginField const& field = fields->fields[at];
        if (field.type == PluginFieldType::kFLOAT32)
            std::printf(" %s=%g", field.name, *static_cast<float const*>(field.data));
        else
            std::printf(" %s=%d", field.name, *static_cast<int32_t const*>(field.data));
    }
    std::printf(" %s\n", build_of(plugin)->getTimingCacheID());
}

void show_creation(IPluginCreatorV3One* from, std::vector<PluginField> fields) {
    std::printf("created %d\n", create(from, std::move(fields)) != nullptr);
}

void creation(void* library) {
    auto* const mla = creator("DsMlaAttention", library);
    float const none = 0;
    int64_t const wide = 512;
    int32_t const dtype = 16;
    show_creation(mla, {kScaleField, kRankField});
    show_creation(mla, {kScaleField, kRankField, {"dtype", &dtype, PluginFieldType::kINT32, 1}});
    show_creation(mla, {kRankField});
    show_creation(mla, {kScaleField});
    show_creation(mla, {{"scale", &none, PluginFieldType::kFLOAT32, 1}, kRankField});
    show_creation(mla, {kScaleField, {"rank", &wide, PluginFieldType::kINT64, 1}});
    show_creation(mla, {kScaleField, {"rank", &kRank, PluginFieldType::kINT32, 2}});
    show_creation(mla, {kScaleField, kRankField, {"color", &dtype, PluginFieldType::kINT32, 1}});
    show_creation(creator("DsMoE", library), {});
    show_creation(creator("DsMoE", library), {kScaleField});
    int32_t const listed = mla->getFieldNames()->nbFields;
    std::printf("listed %d %s %s\n", listed, mla->getPluginNamespace(), mla->getPluginVersion());
}

void clones(void* library) {
    IPluginV3* const first = create(creator("DsMlaAttention", library), {kScaleField, kRankField});
    runtime_of(first)->setTactic(2);
    IPluginV3* const second = first->clone()->clone();
    IPluginV3* const third = runtime_of(second)->attachToContext(nullptr);
    delete first;
    show_attributes(second);
    show_attributes(third);
    show_attributes(create(creator("DsFp8BlockMoE", library), {}));
    auto const core = static_cast<IPluginV3OneCore*>(
        third->getCapabilityInterface(PluginCapabilityType::kCORE));
    std::printf("%s %s %s\n", core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace());
    shape_change(third, attention(5));  // by the driver of the tests: tactic 2, of 1024 tokens
    enqueue(third, attention(5));
}

void build(void* library) {
    IPluginV3* const mla = create(creator("DsMlaAttention", library), {kScaleField, kRankField});
    auto* const build = build_of(mla);
    std::printf("outputs %d aliased %d %d\n", build->getNbOutputs(), build->getAliasedInput(0),
                build->getAliasedInput(1));
    std::printf("configure %d\n", configure(mla, attention(5)));
    std::vector<int32_t> numbers(static_cast<size_t>(build->getNbTactics()));
    std::printf("valid %d", build->getValidTactics(numbers.data(), build->getNbTactics()));
    for (int32_t const number : numbers) std::printf(" %d", number);
    auto const descs = attention(5).dynamic();
    std::printf(" workspace %zu\n", build->getWorkspaceSize(descs.data(), 6, descs.data() + 6, 2));
    std::printf("tactics %d %d\n", runtime_of(mla)->setTactic(6), runtime_of(mla)->setTactic(7));
    std::printf("configure %d\n", configure(mla, attention(5, DataType::kFLOAT)));
    std::printf("tactics %d\n", build->getNbTactics());
    std::printf("configure %d\n", configure(mla, attention(5, DataType::kBF16, 1 << 16)));
    std::printf("configure %d\n", configure(mla, linear(5)));
}

// Print for each type of x which tensors may be of the types of `linear`, and x in another format.
void formats(void* library) {
    IPluginV3* const plugin = create(creator("DsFp8BlockLinear", library), {});
    for (DataType const x : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT32}) {
        auto descs = linear(5, x).dynamic();
        std::printf("x %d:", static_cast<int>(x));
        for (int32_t position = 0; position < 4; position++)
            std::printf(" %d", build_of(plugin)->supportsFormatCombination(position, descs.data(), 3, 1));
        descs[0].desc.format = TensorFormat::kCHW32;
        std::printf(" %d\n", build_of(plugin)->supportsFormatCombination(0, descs.data(), 3, 1));
    }
}

void empty(void* library) {
    for (auto const& [name, node] : {std::pair{"DsMlaAttention", attention(0)}, {"DsFp8BlockLinear", linear(0)}}) {
        bool const is_mla = !std::strcmp(name, "DsMlaAttention");
        IPluginV3* const plugin = create(creator(name, library), is_mla
            ? std::vector<PluginField>{kScaleField, kRankField} : std::vector<PluginField>{});
        auto const descs = node.fixed();
        std::vector<void*> const nothing(8, nullptr);
        std::printf("enqueue %d\n", runtime_of(plugin)->enqueue(descs.data(), descs.data() + node.inputs,
            nothing.data(), nothing.data(), nullptr, nullptr));
    }
}

void launches(void* library) {
    IPluginV3* const plugin = create(creator("DsFp8BlockLinear", library), {});
    shape_change(plugin, linear(5));
    enqueue(plugin, linear(5));
    enqueue(plugin, linear(5), 8);
    enqueue(plugin, linear(5, DataType::kHALF));
    IPluginV3* const mla = create(creator("DsMlaAttention", library), {kScaleField, kRankField});
    enqueue(mla, attention(5), 0, false);
    enqueue(plugin, linear(5), 0, true, 0);
    enqueue(plugin, linear(5), 0, true, 64);
}

void contexts(void* library) {
    auto* const driver = dlopen("libcuda.so.1", RTLD_NOW);
    auto const use = reinterpret_cast<void (*)(unsigned long long)>(dlsym(driver, "use_context"));
    IPluginV3* const plugin = create(creator("DsFp8BlockLinear", library), {});
    IPluginV3* const one = runtime_of(plugin)->attachToContext(nullptr);
    IPluginV3* const two = runtime_of(plugin)->attachToContext(nullptr);
    runtime_of(two)->setTactic(2);
    shape_change(one, linear(5));
    shape_change(two, linear(5));  // the same CUDA context: nothing is loaded again
    enqueue(one, linear(5));
    enqueue(two, linear(5));
    use(2);
    enqueue(one, linear(5));
    shape_change(one, linear(5));
    enqueue(one, linear(5));
}

}  // namespace

int main(int, char** words) {
    void* const library = dlopen(words[1], RTLD_NOW);
    if (!library) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::string const command = words[2];
    if (command != "silent")
        reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    if (command == "creation") creation(library);
    if (command == "clones") clones(library);
    if (command == "build") build(library);
    if (command == "formats") formats(library);
    if (command == "empty") empty(library);
    if (command == "launches" || command == "silent") launches(library);
    if (command == "contexts") contexts(library);
    return 0;
}
