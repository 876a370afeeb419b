#!/bin/sh
# Speed, memory and quality that may not be lost; the first two looser than the goals, and a busy machine
# may have two more tries.
set -e
cd "$(dirname "$0")/.."
attempt() {
    echo "== $*"
    "$@" || "$@" || "$@"
}
if python -c 'from dstools_kernels import native; raise SystemExit(native.levels()[0] != "avx512vbmi")'; then
    attempt python scripts/bench_kernel.py --levels avx512vbmi --at-least 0.6
    attempt python scripts/bench_quantize.py --warm --at-least 1.5 --at-most-mib 128
else
    echo "speed is not gated: this CPU has no AVX-512 VBMI, which the figures are of"
    attempt python scripts/bench_quantize.py --warm --at-most-mib 128
fi
echo "== what calibration gains on the trained sample model, on text that it has not seen"
python scripts/study_calibration.py sample --seeds 0 --methods amax gptq --at-most-error 0.70 --at-most-kl 0.80
