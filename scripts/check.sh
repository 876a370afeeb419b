#!/bin/sh
# All checks that a change must pass, in CI and before a commit. The last line says what failed.
set -e
cd "$(dirname "$0")/.."
run() {
    echo "== $*"
    "$@"
}
run ruff format --check --quiet
run ruff check --quiet
run mypy
run lint-imports --no-logo

# Two halves, a core each: what compiles and builds, and all other tests.
BUILDS="tests/kernels/test_plugin.py tests/converters/export"
builds() {
    status=0
    sh scripts/ladder.sh || status=1
    pytest -q $BUILDS || status=1
    return $status
}
echo "== sh scripts/ladder.sh and pytest $BUILDS, beside the other tests; their output is below"
output=$(mktemp)
builds > "$output" 2>&1 &
half=$!
trap 'kill $half 2> /dev/null || true; rm -f "$output"' EXIT
failed=
ignored=$(for path in tests/kernels/ops/triton tests/kernels/proof/test_compile.py $BUILDS; do
    echo "--ignore $path"
done)
run pytest -q "$@" $ignored || failed=" pytest"
if wait $half; then
    grep "^==\|passed" "$output"
else
    cat "$output"
    failed="$failed builds"
fi
if [ "$failed" ]; then
    echo "== failed:$failed"
    exit 1
fi
echo "== all checks passed"
