#!/bin/sh
# The proofs about the Triton kernels that need no GPU; each step's time is printed at the end.
set -e
cd "$(dirname "$0")/.."
times=$(mktemp)
errors=$(mktemp)
trap 'rm -f "$times" "$errors"' EXIT
climb() {
    # Triton's bindings write at exit what Gluon's layouts leak; stderr says more only on failure.
    pytest -q -p dstools_kernels.proof.ladder --times "$times" "$@" 2> "$errors" || {
        cat "$errors"
        echo "== ladder: failed: $*"
        exit 1
    }
}
export TRITON_INTERPRET=1 # L0 to L4, and mutants
climb tests/kernels/proof/test_interpreter.py tests/kernels/proof/test_sanitizer.py \
    tests/kernels/proof/test_accumulate.py tests/kernels/proof/test_cases.py \
    tests/kernels/ops/triton tests/converters/runtime/test_serving_triton.py
climb tests/scripts/engines/test_sample_answers.py -k interpreted
export TRITON_INTERPRET=0 # L5, and mutants
climb tests/kernels/proof/test_compile.py
python -m dstools_kernels.proof.ladder "$times"
