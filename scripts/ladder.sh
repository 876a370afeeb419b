#!/bin/sh
# The proofs about the Triton kernels that need no GPU; each step's time is printed at the end.
set -e
cd "$(dirname "$0")/.."
times=$(mktemp)
errors=$(mktemp)
trap 'rm -f "$times" "$errors"' EXIT
climb() {
    run "$@" && return
    if [ $? = 137 ]; then # by the kernel, for memory that others took; a test that fails ends with 1
        echo "== ladder: killed, and run again: $*"
        grep -E "^(MemFree|MemAvailable|Committed_AS)" /proc/meminfo
        { dmesg 2> /dev/null || true; } | grep -i "killed process" | tail -n 3 || true
        run "$@" && return
    fi
    cat "$errors"
    echo "== ladder: failed: $*"
    exit 1
}
run() {
    # Triton's bindings write at exit what Gluon's layouts leak; stderr says more only on failure.
    pytest -q -p dstools_kernels.proof.ladder --times "$times" "$@" 2> "$errors"
}
export TRITON_INTERPRET=1 # L0 to L4, and mutants
climb tests/kernels/proof/test_interpreter.py tests/kernels/proof/test_sanitizer.py \
    tests/kernels/proof/test_accumulate.py tests/kernels/proof/test_cases.py \
    tests/kernels/ops/triton tests/converters/runtime/test_serving_triton.py
climb tests/scripts/engines/test_sample_answers.py -k interpreted
export TRITON_INTERPRET=0 # L5, and mutants
climb tests/kernels/proof/test_compile.py
python -m dstools_kernels.proof.ladder "$times"
