// Launches of kernels as data: what a plugin is going to do is computed, and tested, without a GPU.
//
// Needs neither TensorRT nor CUDA, as all headers here but driver.h, log.h and plugin.h. Addresses
// are numbers. Kernels are those of the table in kernels.h, which plugin.py generates.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dstools {

// What cannot be computed, in a sentence; caught where TensorRT calls.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A compiled kernel and its launch contract.
struct Kernel {
    char const* name;        // as in the tables CONFIGS of the twins
    char const* symbol;      // in its cubin
    char const* arguments;   // a letter each, in order: see Argument; capitals are divisible by 16
    uint32_t threads;        // of a block
    uint32_t shared_bytes;   // dynamic shared memory
    uint32_t scratch_bytes;  // of workspace for each block, where it makes its TMA descriptors
    char const* hash;        // of its cubin
};

struct Argument {
    char kind;  // p pointer, i int32, l int64, f float32
    union {
        uint64_t address;
        int32_t int32;
        int64_t int64;
        float float32;
    };
};

inline Argument p(uint64_t address) {
    Argument a{};
    a.kind = 'p';
    a.address = address;
    return a;
}

// Raises Error where `value` does not fit into 32 bits.
inline Argument i(int64_t value) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max())
        throw Error(std::to_string(value) + " does not fit into the 32 bits of a kernel's argument");
    Argument a{};
    a.kind = 'i';
    a.int32 = static_cast<int32_t>(value);
    return a;
}

inline Argument l(int64_t value) {
    Argument a{};
    a.kind = 'l';
    a.int64 = value;
    return a;
}

inline Argument f(float value) {
    Argument a{};
    a.kind = 'f';
    a.float32 = value;
    return a;
}

// A kernel over a grid; without a kernel, zeros for `bytes` from arguments[0] on.
struct Launch {
    Kernel const* kernel;
    uint32_t grid[2];
    std::vector<Argument> arguments;  // those of the signature, without the two hidden ones
    uint64_t scratch;                 // address of workspace for the blocks' scratch_bytes, or 0
    uint64_t bytes;                   // to fill with zeros
};

using Arguments = std::vector<Argument>;

// Return whether `argument` is divisible by 16, which compiled code may rely on.
inline bool is_divisible(Argument const& argument) {
    switch (argument.kind) {
        case 'p': return argument.address % 16 == 0;
        case 'i': return argument.int32 % 16 == 0;
        case 'l': return argument.int64 % 16 == 0;
        default: return false;
    }
}

// Return why `kernel` does not take these arguments; empty where it does.
inline std::string refusal(Kernel const& kernel, Arguments const& arguments) {
    if (std::strlen(kernel.arguments) != arguments.size())
        return "it takes " + std::to_string(std::strlen(kernel.arguments)) + " arguments, not " +
               std::to_string(arguments.size());
    for (size_t at = 0; at < arguments.size(); at++) {
        char const wanted = kernel.arguments[at];
        bool const is_promised = wanted >= 'A' && wanted <= 'Z';
        char const kind = static_cast<char>(is_promised ? wanted - 'A' + 'a' : wanted);
        std::string const which = "argument " + std::to_string(at);
        if (arguments[at].kind != kind) return which + " is of another kind";
        if (is_promised && !is_divisible(arguments[at])) return which + " is not divisible by 16";
    }
    return "";
}

// Return the kernel `name`, or its fallback, compiled without promises on sizes, where the promises
// do not hold. Raises Error where neither takes the arguments.
inline Kernel const& fitting(Kernel const* table, size_t count, std::string const& name,
                             Arguments const& arguments) {
    std::string why = "it is not in the library";
    for (std::string const& wanted : {name, name + ".unaligned"}) {
        for (size_t at = 0; at < count; at++) {
            if (wanted != table[at].name) continue;
            why = refusal(table[at], arguments);
            if (why.empty()) return table[at];
        }
    }
    throw Error("kernel " + name + ": " + why);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out pieces of the workspace, each aligned to 256 bytes as TensorRT's own is.
class Workspace {
  public:
    explicit Workspace(uint64_t base) : base_(base) {}

    uint64_t take(int64_t bytes) {
        uint64_t const at = base_ + used_;
        used_ += static_cast<uint64_t>(ceil_div(bytes, 256) * 256);
        return at;
    }

    uint64_t bytes() const { return used_; }

    // Return whether pieces are where TMA descriptors may be.
    bool is_aligned() const { return base_ % 128 == 0; }

  private:
    uint64_t base_, used_ = 0;
};

}  // namespace dstools
