// What TensorRT finds in the library: the creators of the four plugins, and a place for its logger.
#include <cmath>
#include <cstdio>
#include <mutex>
#include <set>

#include "log.h"
#include "plugin.h"

using nvinfer1::ILogger;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace dstools {
namespace {

nvinfer1::ILoggerFinder* logger_finder = nullptr;

// Raises Error where the field is not one value of this type.
template <class Value>
Value value_of(PluginField const& field, PluginFieldType type) {
    if (field.type != type || field.length != 1 || !field.data)
        throw Error(std::string("DsMlaAttention: attribute ") + field.name +
                    " is not one number of its type");
    return *static_cast<Value const*>(field.data);
}

// Read the attributes of a node. Raises Error where one is missing, unknown or out of range: the
// parser warns of a missing one at most.
Attributes attributes_of(int op, nvinfer1::PluginFieldCollection const& given) {
    Attributes read;
    for (int32_t at = 0; at < given.nbFields; at++) {
        PluginField const& field = given.fields[at];
        std::string const name = field.name;
        if (op == kMla && name == "scale")
            read.scale = value_of<float>(field, PluginFieldType::kFLOAT32);
        else if (op == kMla && name == "rank")
            read.rank = value_of<int32_t>(field, PluginFieldType::kINT32);
        else if (op != kMla || name != "dtype")  // which only the ONNX function reads
            throw Error(std::string(op_at(op).name) + ": it has no attribute " + name);
    }
    if (op == kMla && !(read.scale > 0 && std::isfinite(read.scale)))
        throw Error("DsMlaAttention: attribute scale is missing or not above 0");
    if (op == kMla && read.rank <= 0)
        throw Error("DsMlaAttention: attribute rank is missing or not above 0");
    return read;
}

class Creator : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit Creator(int op) : op_(op) {
        if (op == kMla)
            names_ = {PluginField("scale", nullptr, PluginFieldType::kFLOAT32, 1),
                      PluginField("rank", nullptr, PluginFieldType::kINT32, 1)};
        collection_ = {static_cast<int32_t>(names_.size()), names_.data()};
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return op_at(op_).name; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const*,
                                      nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        try {
            return new Plugin(op_, attributes_of(op_, *fields));
        } catch (std::exception const& error) {
            say(ILogger::Severity::kERROR, error.what());
            return nullptr;
        }
    }

  private:
    int op_;
    std::vector<PluginField> names_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void say(ILogger::Severity severity, std::string const& sentence) noexcept {
    ILogger* const logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger)
        logger->log(severity, sentence.c_str());
    else
        std::fprintf(stderr, "dstools: %s\n", sentence.c_str());
}

void warn_once(std::string const& sentence) {
    static std::mutex guarding;
    static std::set<std::string> known;
    std::lock_guard<std::mutex> const guard(guarding);
    if (known.insert(sentence).second) say(ILogger::Severity::kWARNING, sentence);
}

}  // namespace dstools

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    dstools::set_logger_finder(finder);
}

EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    using dstools::Creator;
    static Creator mla(dstools::kMla), moe(dstools::kMoe), fp8_moe(dstools::kFp8Moe),
        fp8_linear(dstools::kFp8Linear);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&mla, &moe, &fp8_moe, &fp8_linear};
    count = dstools::kOps;
    return creators;
}
