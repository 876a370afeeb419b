// A CUDA driver that does nothing and writes a line for each call: libcuda.so.1 of the tests.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>

namespace {
unsigned long long context_id = 1;
int modules = 0;
}  // namespace

extern "C" {

void use_context(unsigned long long id) { context_id = id; }

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = reinterpret_cast<CUcontext>(std::getenv("NO_CONTEXT") ? 0 : 8);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext, unsigned long long* id) {
    *id = context_id;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, void const* image) {
    auto const* const bytes = static_cast<unsigned char const*>(image);
    std::printf("load %s\n", bytes[0] == 0x7f && bytes[1] == 'E' ? "ELF" : "?");
    *module = reinterpret_cast<CUmodule>(static_cast<size_t>(++modules));
    return std::getenv("REFUSES") ? CUDA_ERROR_NO_BINARY_FOR_GPU : CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, char const* name) {
    *function = reinterpret_cast<CUfunction>(module);
    std::printf("function %s\n", name);
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute attribute, int value) {
    std::printf("attribute %d %d\n", static_cast<int>(attribute), value);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads,
                        unsigned, unsigned, unsigned shared, CUstream stream, void** arguments,
                        void**) {
    std::printf("launch %zu %ux%ux%u %u %u %zu %llu\n", reinterpret_cast<size_t>(function), x, y, z,
                threads, shared, reinterpret_cast<size_t>(stream),
                *static_cast<unsigned long long*>(arguments[0]));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream) {
    std::printf("fill %llu %d %zu\n", static_cast<unsigned long long>(address), value, bytes);
    return CUDA_SUCCESS;
}
}
