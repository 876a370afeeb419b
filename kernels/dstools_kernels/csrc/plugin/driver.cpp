#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "kernels.h"

extern "C" {
extern unsigned char const* const dstools_cubins[];  // of kKernels, in order; see cubins.cpp
}

namespace dstools {
namespace {

constexpr uint32_t kPlainSharedBytes = 48 * 1024;  // beyond it, a function has to be told

struct Driver {
    decltype(&cuCtxGetCurrent) current_context = nullptr;
    decltype(&cuCtxGetId) context_id = nullptr;  // a context's address may be used again
    decltype(&cuModuleLoadData) load_module = nullptr;
    decltype(&cuModuleGetFunction) get_function = nullptr;
    decltype(&cuFuncSetAttribute) set_attribute = nullptr;
    decltype(&cuLaunchKernel) launch = nullptr;
    decltype(&cuMemsetD8Async) fill = nullptr;
    char const* missing = nullptr;

    Driver() {
        void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            missing = "libcuda.so.1";
            return;
        }
        find(library, current_context, "cuCtxGetCurrent");
        find(library, context_id, "cuCtxGetId");
        find(library, load_module, "cuModuleLoadData");
        find(library, get_function, "cuModuleGetFunction");
        find(library, set_attribute, "cuFuncSetAttribute");
        find(library, launch, "cuLaunchKernel");
        find(library, fill, "cuMemsetD8Async");
    }

    template <class Function>
    void find(void* library, Function& function, char const* name) {
        function = reinterpret_cast<Function>(dlsym(library, name));
        if (!function) missing = name;
    }
};

// Raises Error where there is none.
Driver const& driver() {
    static Driver const found;
    if (found.missing)
        throw Error(std::string("there is no CUDA driver on this machine: ") + found.missing +
                    " is missing");
    return found;
}

void check(CUresult result, std::string const& what) {
    if (result != CUDA_SUCCESS)
        throw Error("the CUDA driver ended " + what + " with error " +
                    std::to_string(static_cast<int>(result)));
}

unsigned long long context() {
    CUcontext current = nullptr;
    check(driver().current_context(&current), "cuCtxGetCurrent");
    if (!current) throw Error("no CUDA context is current");
    unsigned long long id = 0;
    check(driver().context_id(current, &id), "cuCtxGetId");
    return id;
}

// Functions by context and kernel, of all plugins of the process. Modules stay loaded.
std::mutex loading;
std::map<std::pair<unsigned long long, Kernel const*>, CUfunction> functions;

CUfunction load_kernel(size_t index) {
    Kernel const& kernel = kKernels[index];
    CUmodule module = nullptr;
    CUfunction function = nullptr;
    std::string const name = std::string("of ") + kernel.name;
    check(driver().load_module(&module, dstools_cubins[index]), "cuModuleLoadData " + name);
    check(driver().get_function(&function, module, kernel.symbol), "cuModuleGetFunction " + name);
    if (kernel.shared_bytes > kPlainSharedBytes)
        check(driver().set_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                     static_cast<int>(kernel.shared_bytes)),
              "cuFuncSetAttribute " + name);
    return function;
}

CUfunction loaded(unsigned long long id, Kernel const& kernel) {
    std::lock_guard<std::mutex> const guard(loading);
    auto const found = functions.find({id, &kernel});
    if (found == functions.end())
        throw Error(std::string("kernel ") + kernel.name + " is not loaded in this CUDA context");
    return found->second;
}

void run_kernel(Launch const& launch, CUfunction function, CUstream stream) {
    std::vector<void*> arguments;
    for (Argument const& argument : launch.arguments)  // all members of the union begin there
        arguments.push_back(const_cast<uint64_t*>(&argument.address));
    uint64_t scratch = launch.scratch, profile = 0;  // the two that Triton appends
    arguments.push_back(&scratch);
    arguments.push_back(&profile);
    Kernel const& kernel = *launch.kernel;
    check(driver().launch(function, launch.grid[0], launch.grid[1], 1, kernel.threads, 1, 1,
                          kernel.shared_bytes, stream, arguments.data(), nullptr),
          std::string("cuLaunchKernel of ") + kernel.name);
}

}  // namespace

void load(std::vector<char const*> const& names) {
    unsigned long long const id = context();
    std::lock_guard<std::mutex> const guard(loading);
    for (size_t index = 0; index < kKernelCount; index++)
        for (char const* const name : names) {
            bool const is_it = std::strncmp(kKernels[index].name, name, std::strlen(name)) == 0;
            if (is_it && !functions.count({id, &kKernels[index]}))
                functions[{id, &kKernels[index]}] = load_kernel(index);
        }
}

void run(std::vector<Launch> const& launches, CUstream stream) {
    unsigned long long const id = context();
    std::vector<CUfunction> found;  // of all of them, before the first is enqueued
    for (Launch const& launch : launches)
        found.push_back(launch.kernel ? loaded(id, *launch.kernel) : nullptr);
    for (size_t at = 0; at < launches.size(); at++) {
        Launch const& launch = launches[at];
        if (launch.kernel)
            run_kernel(launch, found[at], stream);
        else
            check(driver().fill(launch.arguments[0].address, 0, launch.bytes, stream),
                  "cuMemsetD8Async");
    }
}

}  // namespace dstools
