#include "plugin.h"

#include <cstdio>

#include "driver.h"
#include "log.h"

using nvinfer1::DataType;
using nvinfer1::ILogger;

namespace dstools {
namespace {

constexpr int32_t kFailed = -1;

Type type_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return Type::kFloat;
        case DataType::kHALF: return Type::kHalf;
        case DataType::kBF16: return Type::kBf16;
        case DataType::kFP8: return Type::kFp8;
        case DataType::kINT32: return Type::kInt32;
        default: return Type::kOther;
    }
}

Shape shape_of(nvinfer1::Dims const& dims) { return Shape(dims.d, dims.d + dims.nbDims); }

// The largest shapes of the profile.
Sizes largest(Op const& op, nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t rank) {
    std::vector<Shape> shapes;
    for (size_t at = 0; at < op.inputs.size(); at++) shapes.push_back(shape_of(inputs[at].max));
    return sizes_of(op, shapes, false, rank);
}

// Run `body`; log its error, and return whether there was one.
template <class Body>
bool fails(Body const& body) noexcept {
    try {
        body();
        return false;
    } catch (std::exception const& error) {
        say(ILogger::Severity::kERROR, error.what());
        return true;
    }
}

// The kernels of an op, by what their names begin with.
std::vector<char const*> kernels_of(int op) {
    switch (op) {
        case kMla:
            return {"latent_pages/lengths", "latent_pages/slots", "latent_pages/bf16",
                    "mla_decode/", "mla_merge/"};
        case kMoe:
            return {"permute/", "moe_gemm/bf16.", "swiglu_quant/plain", "combine/"};
        case kFp8Moe:
            return {"permute/", "moe_gemm/fp8.", "swiglu_quant/bf16", "combine/", "act_quant/"};
        default: return {"act_quant/", "fp8_gemm/"};
    }
}

}  // namespace

Plugin::Plugin(int op, Attributes const& attributes) : op_(op), attributes_(attributes) {
    // a stale timing must not survive new kernels or other attributes
    char scale[32];
    std::snprintf(scale, sizeof scale, "%a", static_cast<double>(attributes.scale));
    timing_id_ = std::string(op_at(op).name) + " " + kVersion + " " + scale + " " +
                 std::to_string(attributes.rank) + " " + kKernelsHash;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    Plugin* copy = nullptr;
    fails([&] { copy = new Plugin(*this); });
    return copy;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept { return op().name; }

int32_t Plugin::getNbOutputs() const noexcept { return static_cast<int32_t>(op().outputs.size()); }

int32_t Plugin::getAliasedInput(int32_t output) noexcept { return output == 1 ? op().aliased : -1; }

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, DataType const* inputs,
                                   int32_t) const noexcept {
    for (int32_t at = 0; at < output_count; at++) outputs[at] = inputs[0];
    return 0;
}

// Each dimension of an output is one of an input, or the rank.
int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t,
                                nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs,
                                int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
    for (int32_t output = 0; output < output_count; output++) {
        char const* const wanted = op().outputs[static_cast<size_t>(output)].dims;
        outputs[output].nbDims = static_cast<int32_t>(std::strlen(wanted));
        for (size_t at = 0; wanted[at]; at++) {
            nvinfer1::IDimensionExpr const* found = nullptr;
            for (size_t input = 0; input < op().inputs.size() && !found; input++) {
                char const* const dims = op().inputs[input].dims;
                char const* const place = std::strchr(dims, wanted[at]);
                if (place && inputs[input].nbDims == static_cast<int32_t>(std::strlen(dims)))
                    found = inputs[input].d[place - dims];
            }
            outputs[output].d[at] = found ? found : builder.constant(attributes_.rank);
        }
    }
    return 0;
}

bool Plugin::supportsFormatCombination(int32_t position,
                                       nvinfer1::DynamicPluginTensorDesc const* tensors,
                                       int32_t input_count, int32_t) noexcept {
    auto const& list = position < input_count ? op().inputs : op().outputs;
    auto const index = static_cast<size_t>(position < input_count ? position : position - input_count);
    nvinfer1::PluginTensorDesc const& desc = tensors[position].desc;
    return index < list.size() && desc.format == nvinfer1::TensorFormat::kLINEAR &&
           is_supported(list[index], type_of(desc.type), type_of(tensors[0].desc.type));
}

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                nvinfer1::DynamicPluginTensorDesc const* outputs,
                                int32_t output_count) noexcept {
    bool const has_failed = fails([&] {
        if (static_cast<size_t>(input_count) != op().inputs.size() || output_count != getNbOutputs())
            throw Error(std::string(op().name) + ": it has " + std::to_string(op().inputs.size()) +
                        " inputs and " + std::to_string(getNbOutputs()) + " outputs");
        for (size_t at = 0; at < op().inputs.size(); at++)
            refuse_large(op(), op().inputs[at], shape_of(inputs[at].max));
        for (size_t at = 0; at < op().outputs.size(); at++)
            refuse_large(op(), op().outputs[at], shape_of(outputs[at].max));
        Sizes const most = largest(op(), inputs, attributes_.rank);
        Type const x = type_of(inputs[0].desc.type);
        tactics_ = tactics(op_, most, x);
        std::string const why = why_not(op_, most, x);
        if (!why.empty())
            warn_once(std::string(op().name) + ": " + why + "; the engine will build and not run");
    });
    return has_failed ? kFailed : 0;
}

size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t,
                                nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
    uint64_t bytes = 0;
    fails([&] {
        bytes = workspace_bytes(op_, largest(op(), inputs, attributes_.rank), type_of(inputs[0].desc.type));
    });
    return bytes;
}

int32_t Plugin::getNbTactics() noexcept { return static_cast<int32_t>(tactics_.size()); }

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
    if (count != getNbTactics()) return kFailed;
    for (int32_t at = 0; at < count; at++) tactics[at] = tactics_[static_cast<size_t>(at)];
    return 0;
}

char const* Plugin::getTimingCacheID() noexcept { return timing_id_.c_str(); }

int32_t Plugin::setTactic(int32_t tactic) noexcept {
    if (!is_tactic(op_, tactic)) return kFailed;
    tactic_ = tactic;
    return 0;
}

// Load the kernels of all tactics, as the tactic may be set later. A failure is logged, and ends
// the next enqueue, which finds no kernel.
int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t,
                              nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
    fails([&] {
        std::vector<Shape> shapes;
        for (size_t at = 0; at < op().inputs.size(); at++) shapes.push_back(shape_of(inputs[at].dims));
        Sizes const sizes = sizes_of(op(), shapes, false, attributes_.rank);
        if (why_not(op_, sizes, type_of(inputs[0].type)).empty()) load(kernels_of(op_));
    });
    return 0;
}

std::vector<Launch> Plugin::prepare(nvinfer1::PluginTensorDesc const* descs,
                                    void const* const* inputs, void* const* outputs,
                                    void* workspace) const {
    Tensors tensors;
    std::vector<Shape> shapes;
    for (size_t at = 0; at < op().inputs.size(); at++) {
        shapes.push_back(shape_of(descs[at].dims));
        tensors.in.push_back(reinterpret_cast<uint64_t>(inputs[at]));
    }
    for (size_t at = 0; at < op().outputs.size(); at++)
        tensors.out.push_back(reinterpret_cast<uint64_t>(outputs[at]));
    if (op().aliased >= 0 && tensors.out[1] != tensors.in[static_cast<size_t>(op().aliased)])
        throw Error(std::string(op().name) + ": " + op().outputs[1].name + " is not in place");
    Sizes const sizes = sizes_of(op(), shapes, true, attributes_.rank);
    Workspace pieces(reinterpret_cast<uint64_t>(workspace));
    std::vector<Launch> launches =
        launches_of(op_, sizes, type_of(descs[0].type), tactic_, attributes_, tensors, pieces);
    if (pieces.bytes() && (!workspace || !pieces.is_aligned()))
        throw Error(std::string(op().name) + ": the workspace is missing or not aligned");
    return launches;
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                        nvinfer1::PluginTensorDesc const*, void const* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    if (input_descs[0].dims.d[0] == 0) return 0;  // no rows; addresses may be null
    bool const has_failed = fails([&] {
        run(prepare(input_descs, inputs, outputs, workspace), stream);
    });
    return has_failed ? kFailed : 0;
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    fields_.clear();
    if (op_ == kMla)
        fails([&] {
            fields_.emplace_back("scale", &attributes_.scale, nvinfer1::PluginFieldType::kFLOAT32, 1);
            fields_.emplace_back("rank", &attributes_.rank, nvinfer1::PluginFieldType::kINT32, 1);
        });
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
}

}  // namespace dstools
