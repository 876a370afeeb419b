// What a plugin has to say, through the logger that TensorRT offers.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace dstools {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Log a sentence; on stderr where TensorRT gave no logger, since an error must not be lost.
void say(nvinfer1::ILogger::Severity severity, std::string const& sentence) noexcept;

// Log a warning, once in a process: a model has the same for each of its layers.
void warn_once(std::string const& sentence);

}  // namespace dstools
