# Sourced by the training scripts. Goes to the repository's root, finds the interpreter (see setup_environment.sh) and defines
#
#   launch SCRIPT LOG [FLAGS ...]   run a stage's main.py: $RANKS ranks (one: plain python, several: the deepspeed
#                                   launcher), output on the screen and in LOG, exit code kept
#
# RANKS and THREADS (CPU threads a rank) may be set before. Bash reads a script as it goes: the training scripts end in
# `; exit` on the line of their last command, so that they can be edited while they run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source utils/setup_environment.sh

launch() {
    local script=$1 log=$2 gpus port
    shift 2
    mkdir -p "$(dirname "$log")"
    if [ -e "$log" ]; then mv "$log" "${log%.log}.previous.log"; fi # of a run that this one goes on from, perhaps
    export OMP_NUM_THREADS=${THREADS:-1}
    export LAUNCHER_PIDS="${LAUNCHER_PIDS:-} $$" # the ranks end when one of these is gone (see utils/rank_watch.py)
    gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
    if [ "$gpus" -eq 0 ]; then
        export DS_ACCELERATOR=cpu
    elif [ "${RANKS:-1}" -gt "$gpus" ]; then
        echo "RANKS=$RANKS: there are $gpus GPUs; using $gpus ranks"
        RANKS=$gpus
    fi
    if [ "${RANKS:-1}" -eq 1 ]; then
        "$PYTHON" -u "$script" "$@" 2>&1 | tee "$log"
    else
        # A port of its own, so that several runs fit on one machine.
        port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        "$PYTHON" -m deepspeed.launcher.runner --num_accelerators "$RANKS" --master_port "$port" \
            "$script" "$@" 2>&1 | tee "$log"
        # The runner takes it for a good end when the process between it and the ranks is killed.
        if [ "$(grep -o 'exits successfully' "$log" | wc -l)" -lt "$RANKS" ]; then
            echo "error: the launcher of the ranks was killed" >&2
            return 1
        fi
    fi
}
