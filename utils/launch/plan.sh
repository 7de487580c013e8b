# Sourced by run_all.sh, whose functions it uses: what comes before its pipeline.
#
#   dry_run         says what a run of the preset would do, and has everything checked that can be checked now; ends with
#                   the worst exit code of a check (2: bad input, 1: a plan that does not fit), or 0
#   pin_revisions   gives hub names without a revision the commit they have now, in OUTPUT/revisions.json for later runs;
#                   in a dry run, the one that the file has

PROBLEMS=() UNFIT=() LATER=() WORST=0 # pieces with problems, that do not fit, that can be checked later; worst exit code

dry_run() {
    local model
    echo "preset $PRESET -> $OUTPUT (nothing is written)"
    if [ -f "$OUTPUT/revisions.json" ]; then pin_revisions --known_only; fi
    if makes_data; then say_made data "$OUTPUT/base/config.json"; fi
    check_stage sft "step1_sft/training_scripts/$SCRIPTS.sh"
    make_stand_ins
    stand_in_for sft ACTOR_MODEL
    for model in "${SCORE_MODELS[@]}"; do check_stage "$model" "$(script_of "$model")"; done
    for model in "${SCORE_MODELS[@]}"; do stand_in_for "$model" "$(model_variable "$model")"; done
    check_policies
    check_evaluation
    say_largest
    end_dry_run
}

take_note() { # of exit code $2 of the check of piece $1; the others are checked all the same
    if [ "$2" -eq 0 ]; then return; fi
    if [ "$2" -gt 2 ]; then exit "$2"; fi # interrupted or killed
    if [ "$2" -eq 1 ] && grep -qs '^does not fit: ' "$(said_of "$1")"; then UNFIT+=("$1"); else PROBLEMS+=("$1"); fi
    if [ "$2" -gt "$WORST" ]; then WORST=$2; fi
}

end_dry_run() {
    if [ ${#PROBLEMS[@]} -gt 0 ]; then echo "error: dry run: problems in ${PROBLEMS[*]} (see above)" >&2; fi
    if [ ${#UNFIT[@]} -gt 0 ]; then echo "error: dry run: does not fit in memory: ${UNFIT[*]} (see above)" >&2; fi
    if [ ${#LATER[@]} -gt 0 ]; then echo "not checked yet: $(printf '%s, ' "${LATER[@]}" | sed 's/, $//')"; fi
    if [ "$WORST" -eq 0 ]; then echo "dry run passed in $(clock $((SECONDS - STARTED)))"; fi
    exit "$WORST"
}

say_made() { # piece $1 with mark $2
    if finished "$2"; then echo "[$1] is there already"; else echo "[$1] would be made"; fi
}

check_stage() { # model $1 and the script $2 that makes it
    local source
    if is_ready_made "$1"; then echo "[$1] $(place_of "$1") is used as it is"; return; fi
    if is_current "$1"; then echo "[$1] is there already"; return; fi
    for source in $(sources_of "$1"); do
        if ! is_current "$source"; then
            echo "[$1] would be trained; a dry run checks it once $source is made"
            LATER+=("$1")
            return
        fi
    done
    echo "[$1] would be trained:"
    check_training "$1" "$2"
}

check_training() { # of $1, by the script and arguments that follow; its output stays for say_largest
    local name=$1 code=0
    shift
    bash "$@" | tee "$(said_of "$name")" || code=$?
    take_note "$name" "$code"
}

said_of() { echo "$CODES/${1//\//_}.said"; } # the file of what the check of piece $1 has said

make_stand_ins() { # for models that are not trained yet: what they are trained from has configuration and tokenizer
    local source=$ACTOR_MODEL tokenizer="" model command code=0
    if all_current sft "${SCORE_MODELS[@]}"; then return; fi
    if ! is_current sft && makes_data; then
        if ! is_current base; then return; fi
        source=$OUTPUT/base
    elif ! is_current sft; then source=$BASE_MODEL tokenizer=$TOKENIZER
    fi
    command=("$PYTHON" utils/launch/stand_in.py --model "$source" ${tokenizer:+--tokenizer "$tokenizer"}
        --policy "$CODES/sft")
    for model in "${SCORE_MODELS[@]}"; do command+=("--${model%%/*}_model" "${model#*/}=$CODES/$model"); done
    if [[ " ${PROBLEMS[*]} " == *" sft "* ]]; then # what is wrong with the source has been said
        "${command[@]}" 2> /dev/null || true
        return
    fi
    "${command[@]}" || code=$?
    take_note "what is trained from $source" "$code"
}

all_current() { # models that follow
    local model
    for model in "$@"; do if ! is_current "$model"; then return 1; fi; done
}

stand_in_for() { # model $1, which variable $2 names
    if is_current "$1" || ! [ -d "$CODES/sft" ]; then return; fi
    printf -v "$2" %s "$CODES/$1"
    echo "[$1] is not there yet: in what follows, what it would be trained from stands in for it"
}

check_policies() { # one run of every shape in full: they differ in weights and rewards, not in models and batches
    local run shape source trained=() averaged=() shapes=()
    for run in $RUNS; do
        if is_current "policies/$run"; then echo "[$run] is there already"
        elif is_trained "$run"; then trained+=("$run")
        else averaged+=("$run"); fi
    done
    echo "[policies] ${#trained[@]} would be trained: ${trained[*]:-none}"
    echo "[policies] ${#averaged[@]} would be averaged: ${averaged[*]:-none}"
    for source in sft "${SCORE_MODELS[@]}"; do
        if ! is_current "$source"; then
            echo "[policies] a dry run checks them once $source is made"
            LATER+=(policies)
            return
        fi
    done
    for run in "${trained[@]}"; do
        shape=$(shape_of "$run")
        if [[ " ${shapes[*]} " == *" $shape "* ]]; then continue; fi
        shapes+=("$shape")
        echo "[$run] would be trained:"
        check_training "$run" "$(script_of "policies/$run")" "$run"
    done
}

shape_of() { # run $1: what makes it need more or less than others: critics, gradients of all parameters; own rows apart
    local flags shape=all_objectives
    if is_own "$1"; then echo "row $ROW"; return; fi
    flags=$(run_flags "$1")
    if [[ $flags == *--monitor* ]]; then shape=one_objective; fi
    if [[ $flags == *"scope full"* ]]; then shape+=_full_scope; fi
    if [[ $flags == *--responses_per_prompt* ]]; then shape+=_groups; fi
    if [[ $flags =~ --policy_loss\ ([a-z_]+) ]]; then shape+=_${BASH_REMATCH[1]}; fi
    echo "$shape"
}

check_evaluation() { # flags of its commands; test prompts, unless they are still to be made
    local COMMANDS=() RESPONSE_JOBS=1 no_prompts="" code=0
    choose_judge_prompts() { :; } # writes files
    evaluation_command() { if [ "$1" != eval/report.py ]; then COMMANDS+=("${*@Q}"); fi; }
    respond 0
    evaluate
    if makes_data && ! is_current base; then no_prompts=--no_prompts; fi
    echo "[evaluation] flags and test prompts:"
    "$PYTHON" eval/check.py $no_prompts "${COMMANDS[@]}" || code=$?
    take_note evaluation "$code"
}

say_largest() { # the largest phase of the trainings that were planned, if they were several
    local largest
    largest=$({ grep -h '^largest phase' "$CODES"/*.said 2> /dev/null || true; } |
        awk 'match($0, /[0-9.]+ [MG]iB/) {
            split(substr($0, RSTART, RLENGTH), size, " ")
            print size[1] * (size[2] == "GiB" ? 1024 : 1) "\t" $0
        }' | sort -rn | cut -f2)
    if [ "$(wc -l <<< "$largest")" -gt 1 ]; then echo "of all trainings, ${largest%%$'\n'*}"; fi
}

pin_revisions() { # only of what is read; flags of pin_revisions.py may follow
    local name names model models=(ACTOR_MODEL) data=(TEST_PROMPTS) score_data=() flags=() variables=()
    for model in "${SCORE_MODELS[@]}"; do
        models+=("$(model_variable "$model")")
        if ! is_ready_made "$model"; then score_data=(PREFERENCE_DATA PREFERENCE_VALIDATION); fi
    done
    if ! is_ready_made sft; then models+=(BASE_MODEL TOKENIZER) data+=(SFT_DATA SFT_VALIDATION); fi
    data+=("${score_data[@]}" PROMPTS)
    for name in "${models[@]}"; do
        if may_move "${!name:-}" && [[ ${!name} != *@* ]]; then variables+=("$name") flags+=(--model "${!name}"); fi
    done
    for name in "${data[@]}"; do
        if may_move "${!name:-}" && ! [[ ${!name} =~ ^[^,@]+@[^,@]+@[^,]+$ ]]; then
            variables+=("$name") flags+=(--data "${!name}")
        fi
    done
    if [ ${#variables[@]} -eq 0 ]; then return; fi
    names=$("$PYTHON" utils/launch/pin_revisions.py --file "$OUTPUT/revisions.json" "$@" "${flags[@]}")
    for name in "${variables[@]}"; do read -r "$name"; done <<< "$names"
}

may_move() { # whether model or data $1 may hold a hub name: not a folder or file, nor what this run makes
    [ -n "$1" ] && ! [ -e "$1" ] && [[ $1 != "$OUTPUT"/* ]]
}
