# Sourced by the training scripts. Goes to the repository's root, finds the interpreter (see setup_environment.sh) and defines
#
#   launch SCRIPT LOG [FLAGS ...]   run a stage's main.py: $RANKS ranks (one: plain python, several: the deepspeed
#                                   launcher), output on the screen and in LOG, exit code kept; says why it failed
#                                   where nobody else does
#
# RANKS and THREADS (CPU threads a rank) may be set before; CUDA_VISIBLE_DEVICES=4,5 chooses among the GPUs of a machine.
# Several machines that share the project and its output:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500   one command on every machine, no ssh: RANKS on each of
#                                   NNODES of them; NODE_RANK 0 is the one at MASTER_ADDR, the only one that writes LOG
#   HOSTFILE=hosts [MASTER_ADDR=...] [MASTER_PORT=...]            one command on the first machine, which reaches the
#                                   others by pdsh and ssh; lines "NAME slots=N", N ranks there (or RANKS, if
#                                   set, on each)
#
# DRY_RUN=true checks and plans the run in one process and writes nothing, not even LOG; GPUS (on a machine), GPU_MEMORY
# (GiB of each) and HOST_MEMORY (GiB of a machine) describe what it is for. Models, data and HOSTFILE are found from where
# the command is given. Bash reads a script as it goes: the training scripts end in `; exit` on the line of their last
# command, so that they can be edited while they run.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/variables.sh"
make_paths_absolute
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source utils/launch/setup_environment.sh
source utils/launch/machines.sh

launch() {
    local script=$1 log=$2 code=0 command=()
    shift 2
    check_machines
    export OMP_NUM_THREADS=${THREADS:-1}
    if $DRY_RUN; then
        DS_ACCELERATOR=cpu "$PYTHON" -u "$script" "$@" $(plan_flags)
        return
    fi
    if [ "${NODE_RANK:-0}" -gt 0 ]; then log=${log%.log}.node$NODE_RANK.log; fi
    mkdir -p "$(dirname "$log")"
    if [ -e "$log" ]; then mv "$log" "${log%.log}.previous.log"; fi # of a run that this one goes on from, perhaps
    export LAUNCHER_PIDS="${LAUNCHER_PIDS:-} $$" # the ranks end when one of these is gone (see utils/process/rank_watch.py)
    if [ "$(gpus_here)" -eq 0 ]; then export DS_ACCELERATOR=cpu; fi
    if [ "$(all_ranks)" -eq 1 ]; then
        "$PYTHON" -u "$script" "$@" 2>&1 | tee "$log" || code=$?
    else
        describe_machines
        "$PYTHON" -m deepspeed.launcher.runner "${MACHINES[@]}" "$script" "$@" 2>&1 | tee "$log" || code=$?
        rm -rf "$MACHINES_FOLDER"
        # The runner takes it for a good end when the process between it and the ranks is killed.
        if [ "$code" -eq 0 ] && [ "$(grep -o 'exits successfully' "$log" | wc -l)" -lt "$(ranks_started)" ]; then
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
    if [ "$(all_ranks)" -gt 1 ]; then who="a rank of $2" signal=$(($1 > 192 ? 256 - $1 : 0)); fi
    case $signal in
        9) echo "$who was killed (SIGKILL: by hand, or there was no memory left)" ;;
        [1-9] | [1-5][0-9] | 6[0-4]) echo "$who was ended by SIG$(kill -l "$signal")" ;;
        *) echo "$who ended with exit code $1" ;;
    esac
}
