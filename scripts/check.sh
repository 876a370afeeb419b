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

# The ladder takes one core, the other tests little more.
echo "== sh scripts/ladder.sh, beside the other tests; its output is below theirs"
output=$(mktemp)
sh scripts/ladder.sh > "$output" 2>&1 &
ladder=$!
trap 'kill $ladder 2> /dev/null || true; rm -f "$output"' EXIT
failed=
run pytest -q "$@" --ignore tests/kernels/ops/triton --ignore tests/kernels/proof/test_compile.py \
    || failed=" pytest"
if wait $ladder; then
    grep "^==" "$output"
else
    cat "$output"
    failed="$failed ladder.sh"
fi
if [ "$failed" ]; then
    echo "== failed:$failed"
    exit 1
fi
echo "== all checks passed"
