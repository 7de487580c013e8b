# Sourced by launch.sh and run_all.sh, after variables.sh: how many ranks run where (see launch.sh for the variables).
#
#   check_machines      refuses what does not fit together, in one line
#   default_ranks N     sets RANKS to N, unless RANKS or HOSTFILE says how many there are
#   several_machines    whether several launchers take part, or one that starts others
#   all_ranks           ranks of all machines
#   number_of_machines
#   ranks_here          ranks of the machine that the command is given on, the first of HOSTFILE
#   ranks_started       those that the command given here starts
#   gpus_here           GPUS, or the GPUs of this machine that CUDA_VISIBLE_DEVICES leaves
#   visible_gpus        their ids, one a line
#   describe_machines   leaves the launcher's flags in the array MACHINES
#   plan_flags          what a dry run is told of the machines

LAST_PORT=65535
settle_switches DRY_RUN RANKS_MAY_SHRINK

gpus_here() {
    if [ -n "${GPUS:-}" ]; then echo "$GPUS"; return; fi
    local gpus
    gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
    if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then gpus=$(chosen_gpus | wc -l); fi
    echo "$gpus"
}

chosen_gpus() { tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | sed 's/[[:space:]]//g; /^$/d; /^-/,$d'; } # as CUDA reads it

visible_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then chosen_gpus; else seq 0 $(($(gpus_here) - 1)); fi
}

hosts() { # "name slots" of every machine in HOSTFILE, in DeepSpeed's format; the last line may lack its end
    sed -En 's/^[[:space:]]*([^#[:space:]]+)[[:space:]]+slots=([0-9]+).*/\1 \2/p' "$HOSTFILE" | awk 1
}

default_ranks() { if [ -z "${HOSTFILE:-}" ]; then RANKS=${RANKS:-$1}; fi; }

several_machines() { [ -n "${HOSTFILE:-}" ] || [ "${NNODES:-1}" -gt 1 ]; }

number_of_machines() { if [ -n "${HOSTFILE:-}" ]; then hosts | wc -l; else echo "${NNODES:-1}"; fi; }

all_ranks() {
    if [ -n "${HOSTFILE:-}" ]; then
        hosts | awk -v ranks="${RANKS:-}" '{ sum += ranks ? ranks : $2 } END { print sum + 0 }'
    else
        echo $((${RANKS:-1} * ${NNODES:-1}))
    fi
}

ranks_here() {
    if [ -z "${RANKS:-}" ] && [ -f "${HOSTFILE:-}" ]; then hosts | awk 'NR == 1 { print $2 }'; else echo "${RANKS:-1}"; fi
}

ranks_started() { if [ -n "${HOSTFILE:-}" ]; then all_ranks; else echo "${RANKS:-1}"; fi; }

check_machines() {
    check_numbers 1 RANKS THREADS NNODES MASTER_PORT || return
    check_numbers 0 NODE_RANK GPUS || return
    check_sizes GPU_MEMORY HOST_MEMORY || return
    if [ "${MASTER_PORT:-1}" -gt $LAST_PORT ]; then
        refuse_machines "MASTER_PORT=$MASTER_PORT: ports end at $LAST_PORT"
    elif [ -n "${HOSTFILE:-}" ]; then
        check_hostfile
    elif [ "${NNODES:-1}" -gt 1 ]; then
        check_nodes
    elif [ "${NODE_RANK:-0}" -gt 0 ]; then
        refuse_machines "NODE_RANK=$NODE_RANK: needs NNODES, the number of machines"
    fi || return
    check_gpus
}

check_nodes() {
    local name
    for name in NODE_RANK MASTER_ADDR; do
        if [ -z "${!name:-}" ] && ! $DRY_RUN; then refuse_machines "$name: needed with NNODES=$NNODES"; return; fi
    done
    if [ "${NODE_RANK:-0}" -ge "$NNODES" ]; then
        refuse_machines "NODE_RANK=$NODE_RANK: the nodes are 0 to $((NNODES - 1)) with NNODES=$NNODES"
    fi
}

check_hostfile() {
    if [ -n "${NNODES:-}${NODE_RANK:-}" ]; then refuse_machines "NNODES, NODE_RANK: HOSTFILE names the machines"; return; fi
    if ! [ -f "$HOSTFILE" ]; then refuse_machines "HOSTFILE=$HOSTFILE: no such file"; return; fi
    check_host_lines || return
    if $DRY_RUN; then return; fi
    if ! command -v pdsh > /dev/null; then
        refuse_machines "HOSTFILE: needs pdsh (without it and ssh: NNODES, NODE_RANK, MASTER_ADDR on every machine)"
        return
    fi
    local host
    for host in $(hosts | cut -d' ' -f1); do
        if ! ssh -n -o BatchMode=yes -o ConnectTimeout=5 "$host" true 2> /dev/null; then
            refuse_machines "HOSTFILE=$HOSTFILE: ssh does not reach $host without a password"; return
        fi
    done
}

check_host_lines() { # every line names a machine of its own, with as many slots as RANKS asks for
    local line twice host slots
    line=$(grep -Evn '^[[:space:]]*(#|$)|^[[:space:]]*[^#[:space:]]+[[:space:]]+slots=[0-9]+[[:space:]]*(#|$)' "$HOSTFILE" |
        head -n 1)
    if [ -n "$line" ]; then refuse_machines "HOSTFILE=$HOSTFILE:${line%%:*}: not of the form \"NAME slots=N\""; return; fi
    twice=$(hosts | cut -d' ' -f1 | sort | uniq -d | head -n 1)
    if [ -n "$twice" ]; then refuse_machines "HOSTFILE=$HOSTFILE: $twice is there twice"; return; fi
    if [ "$(all_ranks)" -eq 0 ]; then refuse_machines "HOSTFILE=$HOSTFILE: no line \"NAME slots=N\""; return; fi
    while read -r host slots; do
        if [ "$slots" -lt "${RANKS:-1}" ]; then
            refuse_machines "RANKS=${RANKS:-1}: more than the slots of $host in HOSTFILE=$HOSTFILE ($slots)"; return
        fi
    done < <(hosts)
}

check_gpus() { # ranks that nobody asked for become as many as there are GPUs
    local gpus ranks=${RANKS:-1}
    if [ -n "${HOSTFILE:-}" ]; then
        if [ -z "${GPUS:-}" ]; then return; fi # of this machine, which need not be one of them
        ranks=${RANKS:-$(hosts | cut -d' ' -f2 | sort -n | tail -n 1)} # of the fullest machine
    fi
    gpus=$(gpus_here)
    if [ "$gpus" -eq 0 ] || [ "$ranks" -le "$gpus" ]; then check_chosen_gpus "$gpus"; return; fi
    if $RANKS_MAY_SHRINK; then
        echo "RANKS=$RANKS: there are $gpus GPUs; using $gpus ranks"
        RANKS=$gpus
    else
        refuse_machines "RANKS=$ranks: more ranks than GPUs ($gpus) on a machine"
    fi
}

check_chosen_gpus() { # DeepSpeed's launcher knows GPUs by number
    if [ "$1" -gt 0 ] && [ "${RANKS:-1}" -gt 1 ] && [[ ${CUDA_VISIBLE_DEVICES:-} =~ [^0-9,[:space:]] ]]; then
        refuse_machines "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES: several ranks need numbers of GPUs there"
    fi
}

refuse_machines() {
    echo "error: $1" >&2
    return 2
}

describe_machines() {
    MACHINES_FOLDER=$(mktemp -d)
    if [ -n "${HOSTFILE:-}" ]; then
        MACHINES=(--hostfile "$HOSTFILE" --no_ssh_check --master_port "${MASTER_PORT:-29500}")
        if [ -n "${MASTER_ADDR:-}" ]; then MACHINES+=(--master_addr "$MASTER_ADDR"); fi
        if [ -n "${RANKS:-}" ]; then MACHINES+=(--num_accelerators "$RANKS"); fi
        hand_on_variables
    elif [ "${NNODES:-1}" -gt 1 ]; then
        describe_nodes "$(include_gpus)"
    else
        local gpus
        gpus=$(include_gpus)
        if [ -n "$gpus" ]; then MACHINES=(--include "localhost:$gpus"); else MACHINES=(--num_accelerators "$RANKS"); fi
        MACHINES+=(--master_port "$(free_port)") # of its own, so that several runs fit on one machine
    fi
}

describe_nodes() { # without ssh the launcher reads machines from a file all the same; only number and order count
    local gpus=$1 slots=${RANKS:-1} include="" node
    if [ -n "$gpus" ]; then slots=$(($(tr ',' '\n' <<< "$gpus" | sort -n | tail -n 1) + 1)); fi
    for ((node = 0; node < NNODES; node++)); do
        echo "node$node slots=$slots"
        include+=@node$node:$gpus # the other machines' numbers may be other ones, but are as many
    done > "$MACHINES_FOLDER/hosts"
    MACHINES=(--no_ssh --hostfile "$MACHINES_FOLDER/hosts" --node_rank "$NODE_RANK"
        --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    if [ -n "$gpus" ]; then MACHINES+=(--include "${include#@}"); fi
}

include_gpus() { # the first RANKS of those that CUDA_VISIBLE_DEVICES names, joined by commas; nothing where it names none
    if [ "$(gpus_here)" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        chosen_gpus | head -n "${RANKS:-1}" | paste -sd,
    fi
}

free_port() { "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

hand_on_variables() { # those that the ranks on other machines are to see, in the file where DeepSpeed looks for them
    export DS_ENV_FILE=$MACHINES_FOLDER/environment
    env | grep -E '^(OMP_NUM_THREADS|DS_ACCELERATOR|HF_[A-Z_]*|TRANSFORMERS_[A-Z_]*)=' > "$DS_ENV_FILE" || true
}

plan_flags() {
    local ranks devices
    ranks=$(all_ranks) devices=$(gpus_here)
    echo "--dry_run --plan_ranks $ranks"
    if [ -n "${HOSTFILE:-}" ]; then
        echo "--plan_devices $(hosts | awk -v gpus="${GPUS:-}" '{ sum += gpus ? gpus : $2 } END { print sum }')"
    elif [ "$devices" -gt 0 ]; then
        echo "--plan_devices $((devices * ${NNODES:-1}))"
    fi
    if several_machines; then echo "--plan_machines $(number_of_machines)"; fi
    if [ -n "${GPU_MEMORY:-}" ]; then echo "--plan_memory $GPU_MEMORY"; fi
    if [ -n "${HOST_MEMORY:-}" ]; then echo "--plan_host_memory $HOST_MEMORY"; fi
}
