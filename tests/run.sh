#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [--quick | --all] [pytest flags]. Makes .venv from requirements.txt on first use.
#
#   --quick       without the tests that are marked slow: for daily work
#   --all         also the rest of the grids of cases, of which a choice runs otherwise: before a release, and where
#                 something deep has changed
#   TEST_JOBS=N   test files side by side (default 3: each may start up to three ranks, and waits at times)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source utils/launch/setup_environment.sh
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
case "${1:-}" in
    --quick) shift && set -- -m "not slow and not exhaustive" "$@" ;;
    --all) shift ;;
    *) set -- -m "not exhaustive" "$@" ;;
esac
# Files go to the workers in the order of tests/conftest.py: what takes longest comes first.
exec "$PYTHON" -m pytest tests -q -n "${TEST_JOBS:-3}" --dist loadfile --no-loadscope-reorder --durations=15 "$@"
