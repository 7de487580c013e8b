#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [pytest flags]. Makes .venv from requirements.txt on first use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source utils/setup_environment.sh
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
exec "$PYTHON" -m pytest tests -q --durations=15 "$@"
