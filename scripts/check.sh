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
lost=$(mktemp)
builds() {
    pytest -q $BUILDS || echo " builds" >> "$lost"
    sh scripts/ladder.sh || echo " ladder.sh" >> "$lost"
    [ ! -s "$lost" ]
}
echo "== pytest $BUILDS and sh scripts/ladder.sh, beside the other tests; their output is below"
output=$(mktemp)
builds > "$output" 2>&1 &
half=$!
trap 'kill $half 2> /dev/null || true; rm -f "$output" "$lost"' EXIT
failed=
ignored=$(for path in tests/kernels/ops/triton tests/kernels/proof/test_compile.py $BUILDS; do
    echo "--ignore $path"
done)
run pytest -q "$@" $ignored || failed=" pytest"
if wait $half; then
    grep "^==\|passed" "$output"
else
    cat "$output"
    failed="$failed$(tr -d '\n' < "$lost")"
fi
if [ "$failed" ]; then
    echo "== failed:$failed"
    exit 1
fi
echo "== all checks passed"
