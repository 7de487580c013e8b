# Sourced by run_all.sh: runs the pieces of a pipeline, several at once, with elapsed time and ETA.
#
#   stage TITLE [SLOTS]                      waits for what runs, then opens a stage that runs SLOTS pieces at once
#   piece NAME SECONDS MARKER COMMAND ...    runs COMMAND, with PIECE=NAME in its environment, unless the file MARKER is
#                                            `finished`; SECONDS is a guess for the ETA
#
# `pipeline`, defined by the caller, calls both. It is walked through once to add up the guesses and once to run.

set -m # every piece gets a process group of its own, so that all its ranks can be ended together

CORES=$(getconf _NPROCESSORS_ONLN)
JOBS=${JOBS:-$((CORES > 4 ? 4 : CORES))}
STARTED=$SECONDS
PLANNED=0   # guessed seconds of everything to be done
DONE=0      # guessed seconds of what this call has done
SLOTS=$JOBS # pieces at once in this stage
CODES=$(mktemp -d)
trap 'rm -rf "$CODES"' EXIT
mkfifo "$CODES/alive"
exec {ALIVE}<> "$CODES/alive" # closed when this process ends, however it does
declare -A RUNNING=() WEIGHT=() BEGAN=()

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

eta() { # the guesses, corrected by how fast they came true so far
    local elapsed=$((SECONDS - STARTED)) left=$((PLANNED - DONE))
    if [ "$DONE" -gt 0 ]; then left=$((left * elapsed / DONE)); else left=$((left / JOBS)); fi
    echo "elapsed $(clock $elapsed) · ETA $(clock $left)"
}

announce() { echo "[$1] $2 · $(eta)"; }

stage() {
    if $PLANNING; then return; fi
    wait_for_pieces 0
    SLOTS=${2:-$JOBS}
    announce "$PRESET" "$1"
}

finished() { # whether file $1 is there, and no run is at work beside it or was when it was killed
    [ -e "$1" ] && ! [ -e "$(dirname "$1")/unfinished" ]
}

piece() {
    local name=$1 seconds=$2 marker=$3
    shift 3
    if [ -n "$marker" ] && finished "$marker"; then
        if ! $PLANNING; then echo "[$name] is there already"; fi
        return
    fi
    if $PLANNING; then PLANNED=$((PLANNED + seconds)); return; fi
    wait_for_pieces $((SLOTS - 1))
    (
        group=$BASHPID
        exec {watched}< "$CODES/alive" {ALIVE}>&-
        end_with_pipeline "$name" "$group" <&"$watched" &
        guard=$!
        disown
        exec {watched}<&-
        trap 'echo $? > "$CODES/$group"; kill -KILL "$guard" 2> /dev/null' EXIT
        export PIECE=$name
        "$@" 2>&1 | sed -u "s/^/[$name] /"
    ) &
    RUNNING[$!]=$name WEIGHT[$!]=$seconds BEGAN[$!]=$SECONDS
    disown # exit codes come through files: bash forgets, and announces, jobs that end two at a time
}

end_with_pipeline() { # ends piece $1, of process group $2, when the pipeline is gone: killed, it ends nothing itself
    read -r || true # from what only the pipeline holds open
    trap '' TERM
    echo "error: the pipeline (process $$) is gone: $1 ends" >&2 || true
    kill -TERM -- "-$2" 2> /dev/null || true
    for _ in $(seq 20); do sleep 0.5; done # the piece ends this process as it ends
    kill -KILL -- "-$2" 2> /dev/null || true
}

wait_for_pieces() { # until at most $1 run
    local pid code
    while [ ${#RUNNING[@]} -gt "$1" ]; do
        sleep 0.2
        for pid in "${!RUNNING[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then continue; fi
            code=$(cat "$CODES/$pid" 2>/dev/null || echo 137) # no code: it was killed
            piece_ended "$pid" "$code"
        done
    done
}

piece_ended() { # process $1, with exit code $2
    local name=${RUNNING[$1]}
    if [ "$2" -ne 0 ]; then
        echo "error: $name ended with exit code $2" >&2
        end_pieces # and what is left of this one
        exit "$2"
    fi
    DONE=$((DONE + WEIGHT[$1]))
    unset "RUNNING[$1]"
    announce "$name" "done in $(clock $((SECONDS - BEGAN[$1])))"
}

end_pieces() { # all ranks of everything that runs: asked first, killed after ten seconds
    local pid
    for pid in "${!RUNNING[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
    for _ in $(seq 20); do
        local alive=false
        for pid in "${!RUNNING[@]}"; do if kill -0 -- "-$pid" 2>/dev/null; then alive=true; fi; done
        $alive || return 0
        sleep 0.5
    done
    for pid in "${!RUNNING[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

interrupted() {
    trap '' INT TERM HUP
    # The terminal may be gone.
    echo "interrupted; what is finished stays, the same command goes on from there" >&2 || true
    end_pieces
    exit 130
}

run_pipeline() {
    trap interrupted INT TERM HUP
    PLANNING=true
    pipeline
    PLANNING=false
    pipeline
    wait_for_pieces 0
}
