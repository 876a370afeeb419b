#!/bin/sh
# The proofs about the Triton kernels that need no GPU, step by step, each with its time.
set -e
cd "$(dirname "$0")/.."
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
step() {
    name=$1
    shift
    start=$(date +%s)
    # Triton's bindings write at exit what Gluon's layouts leak; stderr says more only on failure.
    "$@" 2> "$errors" || {
        cat "$errors"
        echo "== ladder: $name: failed"
        exit 1
    }
    echo "== ladder: $name: $(($(date +%s) - start)) s"
}
interpret() {
    TRITON_INTERPRET=1 pytest -q "$@"
}
step "L0, L1: interpreter and casts" interpret tests/kernels/proof/test_interpreter.py
step "L2, L3, L6: float64 references, sanitizer, mutants" \
    interpret tests/kernels/ops/triton tests/kernels/proof/test_sanitizer.py
step "L2: the shapes to try on a card" interpret tests/kernels/proof/test_cases.py
step "answers: twins in the loop" interpret tests/scripts/test_hopper_check.py -k interpreted
step "L2: a whole model on its twins" interpret tests/converters/runtime/test_serving_triton.py
step "L4: emulated accumulator" interpret tests/kernels/proof/test_accumulate.py
step "L5, L6: compilation for sm_90a, golden figures, mutants" \
    pytest -q tests/kernels/proof/test_compile.py
