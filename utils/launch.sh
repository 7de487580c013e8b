# Sourced by the training scripts. Goes to the repository's root, finds the interpreter (see setup_environment.sh) and defines
#
#   launch SCRIPT LOG [FLAGS ...]   run a stage's main.py: $RANKS ranks (one: plain python, several: the deepspeed
#                                   launcher), output on the screen and in LOG, exit code kept; says why it failed
#                                   where nobody else does
#
# RANKS and THREADS (CPU threads a rank) may be set before. Bash reads a script as it goes: the training scripts end in
# `; exit` on the line of their last command, so that they can be edited while they run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source utils/setup_environment.sh
source utils/variables.sh

launch() {
    local script=$1 log=$2 gpus port code=0
    shift 2
    check_numbers 1 RANKS THREADS
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
        "$PYTHON" -u "$script" "$@" 2>&1 | tee "$log" || code=$?
    else
        # A port of its own, so that several runs fit on one machine.
        port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        "$PYTHON" -m deepspeed.launcher.runner --num_accelerators "$RANKS" --master_port "$port" \
            "$script" "$@" 2>&1 | tee "$log" || code=$?
        # The runner takes it for a good end when the process between it and the ranks is killed.
        if [ "$code" -eq 0 ] && [ "$(grep -o 'exits successfully' "$log" | wc -l)" -lt "$RANKS" ]; then
            echo "error: the launcher of the ranks was killed" >&2
            return 1
        fi
    fi
    if [ "$code" -ne 0 ] && ! grep -q '^error: ' "$log"; then
        echo "error: $(describe_code "$code" "$script")" | tee -a "$log" >&2
    fi
    return "$code"
}

describe_code() { # exit code $1 of script $2: a shell adds 128 to the number of a signal, DeepSpeed takes it from 256
    local who=$2 signal=$(($1 - 128))
    if [ "${RANKS:-1}" -gt 1 ]; then who="a rank of $2" signal=$(($1 > 192 ? 256 - $1 : 0)); fi
    case $signal in
        9) echo "$who was killed (SIGKILL: by hand, or there was no memory left)" ;;
        [1-9] | [1-5][0-9] | 6[0-4]) echo "$who was ended by SIG$(kill -l "$signal")" ;;
        *) echo "$who ended with exit code $1" ;;
    esac
}
