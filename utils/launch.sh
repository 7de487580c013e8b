# Sourced by the training scripts. Goes to the repository's root and defines
#
#   launch SCRIPT LOG [FLAGS ...]   run a stage's main.py: $RANKS ranks (one: plain python, several: the deepspeed
#                                   launcher), output on the screen and in LOG, exit code kept
#
# RANKS, THREADS (CPU threads a rank) and PYTHON may be set before.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}

launch() {
    local script=$1 log=$2
    shift 2
    mkdir -p "$(dirname "$log")"
    export OMP_NUM_THREADS=${THREADS:-1}
    if [ "${RANKS:-1}" = 1 ]; then
        "$PYTHON" -u "$script" "$@" 2>&1 | tee "$log"
    else
        # A port of its own, so that several runs fit on one machine.
        local port
        port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        "$PYTHON" -m deepspeed.launcher.runner --num_accelerators "$RANKS" --master_port "$port" "$script" "$@" 2>&1 | tee "$log"
    fi
}
