#!/bin/sh
# All checks that a change must pass, in CI and before a commit.
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
run sh scripts/ladder.sh
run pytest -q --ignore tests/kernels/proof/test_compile.py "$@" # run by the ladder
