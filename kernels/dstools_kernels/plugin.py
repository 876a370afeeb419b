"""The TensorRT plugin library: twins compiled for sm_90a, and the C++ of csrc/plugin around them.

    python -m dstools_kernels.plugin libdstools_trt.so

One shared library holds the plugins DsMlaAttention, DsMoE, DsFp8BlockMoE and DsFp8BlockLinear, the
cubins of their kernels, and a table with the launch contract of each. It is built by g++ alone and
links nothing of TensorRT or CUDA: TensorRT calls in, the driver is opened at the first launch.

Headers of TensorRT come from TENSORRT_INCLUDE_DIR or the package kernel-lens (10.14), those of CUDA
from the Triton wheel or CUDA_HOME. On the machine that builds the engine, the headers of its own
TensorRT are the right ones.

The library registers, parses and builds in TensorRT-RTX on a CPU. Its kernels are interpreted on a
CPU and statically verified for sm_90a; none has run on a GPU, nor has TensorRT built a Hopper
engine from it.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dstools_kernels.ops.latent_pages import PAGE_SIZE
from dstools_kernels.ops.triton import (
    act_quant_triton,
    combine_triton,
    latent_pages_triton,
    mla_decode_triton,
    moe_gemm_triton,
    permute_triton,
    swiglu_quant_triton,
    tiles,
)
from dstools_kernels.ops.triton.config import Config

SOURCES = Path(__file__).parent / "csrc/plugin"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-Wl,--as-needed", "-Wl,-z,defs"]  # no undefined symbol
FLAGS += [f"-Wl,--version-script={SOURCES / 'exports.map'}"]  # two symbols, for TensorRT
RANK, WIDTH = 512, 576  # of the latents that the twins take
TWINS = (
    "act_quant", "combine", "fp8_gemm", "latent_pages", "mla_decode", "mla_merge", "moe_gemm",
    "permute", "swiglu_quant",
)  # fmt: skip
LEFT_OUT = (
    "ue8m0", ".shared", "combine/fp32", "fp32.float32.rows", "latent_pages/fp8", "mla_decode/fp8",
    "gluon",
)  # fmt: skip
# Kernels that promise that sizes of the model are divisible by 16, where 8 would do
WITH_FALLBACK = ("combine", "fp8_gemm", "moe_gemm/bf16", "permute/gather", "swiglu_quant/plain")
LETTERS = {"i32": "i", "i64": "l", "fp32": "f"}  # of arguments; pointers are p


class Embedded(NamedTuple):
    """A kernel of the library."""

    name: str
    arguments: str  # a letter each, as csrc/plugin/launch.h explains
    kernel: Any  # what `emit` returned

    @property
    def hash(self) -> str:
        """Return what tells its cubin from others."""
        return hashlib.sha256(self.kernel.asm["cubin"]).hexdigest()[:16]


def build(out: Path) -> str:
    """Write the library to `out`, whole or not at all; return what the compiler warns of.

    A compiler or headers newer than those of the tests may warn without a fault. Compiled kernels
    are kept in Triton's own cache, so that a second build takes seconds. Raises FileNotFoundError
    where a compiler or headers are missing, ValueError where Triton interprets, RuntimeError with
    the compiler's words where it fails.
    """
    command = [*_compiler(), *FLAGS]
    for folder in include_folders():
        command += ["-isystem", str(folder)]
    with TemporaryDirectory() as temporary:  # not beside `out`: that folder may be published
        folder = Path(temporary)
        generate(folder)
        library = folder / "library.so"
        sources = [*sorted(SOURCES.glob("*.cpp")), folder / "cubins.cpp"]
        command += ["-I", str(SOURCES), "-I", temporary, *map(str, sources)]
        done = subprocess.run(
            [*command, "-o", str(library), "-ldl"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the plugin library does not compile:\n{done.stderr.strip()}")
        whole = out.with_name(f".{out.name}.tmp")
        shutil.copy(library, whole)
        whole.replace(out)
    return done.stderr


def include_folders() -> list[Path]:
    """Return the folders with the headers of TensorRT and of CUDA.

    Raises FileNotFoundError where there are none, and says how to get them.
    """
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    lens, home = find_spec("kernel_lens"), os.environ.get("CUDA_HOME", "/usr/local/cuda")
    triton = find_spec("triton")
    tensorrt = [Path(named)] if named else []
    if not named and lens is not None and lens.origin is not None:
        tensorrt.append(Path(lens.origin).parent / "include/tensorrt")
    cuda = [Path(home) / "include"]
    if triton is not None and triton.origin is not None:
        cuda.insert(0, Path(triton.origin).parent / "backends/nvidia/include")
    return [
        _having("NvInferRuntime.h", tensorrt, "set TENSORRT_INCLUDE_DIR, or install kernel-lens"),
        _having("cuda.h", cuda, "install triton, or set CUDA_HOME"),
    ]


def _having(header: str, folders: list[Path], hint: str) -> Path:
    for folder in folders:
        if (folder / header).is_file():
            return folder
    where = ", ".join(map(str, folders)) or "no folder"
    raise FileNotFoundError(f"{header} is not in {where}: {hint}")


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed: install g++, or set CXX")
    return command


# ------------------------------------------------------------------------------------- the kernels


def embedded_configs() -> dict[str, Config]:
    """Return the records of the kernels to embed: those of the twins, sums by their slots, and
    fallbacks for sizes that are divisible by 8 alone."""
    from dstools_kernels.proof.compile import configs  # needs Triton's compiler

    chosen = {
        name: config
        for name, config in configs(list(TWINS)).items()
        if not any(part in name for part in LEFT_OUT)
    }
    total = chosen.pop("combine/bf16")
    for slots in range(1, combine_triton.SLOTS + 1):
        constants = {**total.constants, "SLOTS": slots}
        chosen[f"combine/bf16.k{slots}"] = replace(total, constants=constants)
    for name, config in list(chosen.items()):
        if name.startswith(WITH_FALLBACK):
            sizes = tuple(n for n, dtype in config.signature.items() if dtype in ("i32", "i64"))
            chosen[f"{name}.unaligned"] = replace(config, unaligned=sizes)
    return chosen


def embedded_kernels() -> list[Embedded]:
    """Compile the kernels to embed, without line numbers: their cubins hold no path."""
    import triton

    from dstools_kernels.proof.compile import emit

    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        return [
            Embedded(name, argument_letters(config), emit(config))
            for name, config in embedded_configs().items()
        ]


def argument_letters(config: Config) -> str:
    """Return a letter for each argument, a capital where it is compiled as divisible by 16."""
    from dstools_kernels.proof.compile import aligned

    promised = aligned(config)
    letters = {
        n: "p" if dtype[0] == "*" else LETTERS[dtype] for n, dtype in config.signature.items()
    }
    return "".join(letter.upper() if n in promised else letter for n, letter in letters.items())


# --------------------------------------------------------------------------- the generated sources


def generate(folder: Path) -> None:
    """Write kernels.h, cubins.cpp and the cubins into `folder`.

    Raises ValueError where Triton interprets.
    """
    kernels = embedded_kernels()
    for number, embedded in enumerate(kernels):
        (folder / f"{number}.cubin").write_bytes(embedded.kernel.asm["cubin"])
    (folder / "kernels.h").write_text(kernels_header(kernels))
    (folder / "cubins.cpp").write_text(_cubins_source(folder, len(kernels)))


def kernels_header(kernels: list[Embedded]) -> str:
    """Return the launch table, and the constants of the twins that launches depend on."""
    from dstools_kernels.proof.compile import threads

    rows = "\n".join(
        f'    {{"{k.name}", "{k.kernel.metadata.name}", "{k.arguments}", {threads(k.kernel)}, '
        f'{k.kernel.metadata.shared}, {k.kernel.metadata.global_scratch_size}, "{k.hash}"}},'
        for k in kernels
    )
    shapes = ", ".join(
        f'{{{shape.rows}, {shape.columns}, "{shape.name(128)}", '
        f'"{shape.name(moe_gemm_triton.BLOCK_K)}"}}'
        for shape in tiles.TILES
    )
    forms = ", ".join(
        f'{{{block}, "mla_decode/bf16.{block}x{step}"}}'
        for block, step in mla_decode_triton.TILES["bf16"].values()
    )
    splits = ", ".join(map(str, sorted(set(mla_decode_triton.SPLIT_TOKENS.values()))))
    constants = "".join(f"constexpr int64_t {n} = {v};\n" for n, v in _constants(kernels).items())
    whole = hashlib.sha256("".join(k.hash for k in kernels).encode()).hexdigest()[:16]
    return f"""// Generated by dstools_kernels/plugin.py.
#pragma once

#include "launch.h"

namespace dstools {{

{constants}
struct Tile {{
    int64_t rows, columns;
    char const *fp8, *bf16;  // in the names of kernels
}};
constexpr Tile kTiles[] = {{{shapes}}};
constexpr size_t kTileCount = sizeof(kTiles) / sizeof(*kTiles);

struct DecodeForm {{
    int64_t heads;  // of a program
    char const* name;
}};
constexpr DecodeForm kForms[] = {{{forms}}};
constexpr size_t kDecodeForms = sizeof(kForms) / sizeof(*kForms);
constexpr int64_t kSplitTokens[] = {{{splits}}};
constexpr size_t kSplits = sizeof(kSplitTokens) / sizeof(*kSplitTokens);

inline constexpr Kernel kKernels[] = {{  // one table for all of the library: its addresses are keys
{rows}
}};
constexpr size_t kKernelCount = sizeof(kKernels) / sizeof(*kKernels);
constexpr char const* kKernelsHash = "{whole}";

}}  // namespace dstools
"""


def _constants(kernels: list[Embedded]) -> dict[str, int]:
    return {
        "kRank": RANK,
        "kWidth": WIDTH,
        "kPageSize": PAGE_SIZE,
        "kMaxPartialBytes": mla_decode_triton.MAX_PARTIAL_BYTES,
        "kSlotBlock": latent_pages_triton.BLOCK,
        "kSortBlock": permute_triton.BLOCK,
        "kGatherColumns": permute_triton.COLUMNS,
        "kQuantRows": act_quant_triton.ROWS,
        "kSwigluColumns": swiglu_quant_triton.COLUMNS,
        "kSumColumns": combine_triton.BLOCK,
        "kMaxSlots": combine_triton.SLOTS,
        "kMaxExperts": min(permute_triton.EXPERTS, moe_gemm_triton.EXPERTS),
        "kMostSmallRows": tiles.MOST_SMALL_ROWS,
        "kPrograms": tiles.PROGRAMS,
        "kMaxScratchBytes": max(k.kernel.metadata.global_scratch_size for k in kernels),
    }


def _cubins_source(folder: Path, count: int) -> str:
    """Return C++ that embeds the cubins in the order of the table."""
    parts = "".join(
        f'    "dstools_cubin_{n}:\\n.incbin \\"{folder}/{n}.cubin\\"\\n.balign 64\\n"\n'
        for n in range(count)
    )
    names = [f"dstools_cubin_{n}" for n in range(count)]
    return (
        f'asm(".section .rodata\\n.balign 64\\n"\n{parts}    ".previous\\n");\n'
        'extern "C" {\n'
        + "".join(f"extern unsigned char const {name}[];\n" for name in names)
        + "extern unsigned char const* const dstools_cubins[];\n"
        + f"unsigned char const* const dstools_cubins[] = {{{', '.join(names)}}};\n}}\n"
    )


if __name__ == "__main__":
    sys.stderr.write(build(Path(sys.argv[1])))
