#!/bin/sh
# Lower bounds on speed, memory and quality. Speed and memory are looser than the goals, and get two
# more attempts in case the machine is busy.
set -e
cd "$(dirname "$0")/.."
attempt() {
    echo "== $*"
    "$@" || "$@" || "$@"
}
if python -c 'from dstools_kernels.cpu import native; raise SystemExit(native.levels()[0] != "avx512vbmi")'; then
    attempt python scripts/bench_kernel.py --levels avx512vbmi --at-least 0.6
    attempt python scripts/bench_quantize.py --warm --at-least 1.5 --or-floor 1.3 --at-most-mib 128
else
    echo "speed is not checked: the figures need a CPU with AVX-512 VBMI"
    attempt python scripts/bench_quantize.py --warm --at-most-mib 128
fi
attempt python scripts/bench_verify.py --at-least 0.6
echo "== gain of calibration on the sample model, on held-out text"
python scripts/study_calibration.py sample --seeds 0 --methods amax gptq --at-most-error 0.70 --at-most-kl 0.80
echo "== a whole distill run: half the rows and steps of the preset, so a lower bar"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/toy.toml" <<EOF
preset = "toy-cpu"
generate = { model = "$PWD/tests/data/sample-v3" }
student = { tokenizer = "$PWD/tests/data/sample-v3" }
sft = { max_steps = 500 }
eval = { at_least = 0.4 }
[[prompts.source]]
path = "rg:chain_sum"
size = 3000
seed = 555
options = { min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 3 }
EOF
dstools distill run "$work/toy.toml"
