# Sourced by run_all.sh and the training scripts, after variables.sh: the objectives, such as
# OBJECTIVES="reward/helpfulness cost/harmlessness function/wit=jokes.py:wit", each of them
#
#   reward/NAME cost/NAME        a score model, of stage 2 or there already: MODEL_NAME=PATH (REWARD_MODEL=PATH and
#                                COST_MODEL=PATH say the same of the only reward, the only cost)
#   function/NAME=FILE:FUNCTION  a function of prompts and responses (see examples/reward_functions.py), or of a MODULE
#
# Rewards come before costs, and costs before functions: the order of results, in which the weights of a preference count.
#
#   settle_objectives     refuses what is not of this form; leaves OBJECTIVE_NAMES, SCORE_MODELS (reward/NAME, cost/NAME) and
#                         in MODEL_NAME of each where it is or will be; without OBJECTIVES, of presets/objectives.sh
#   is_objective NAME
#   names_of KIND         the names of its objectives
#   others_of NAME        all names but that
#   model_variable MODEL  the variable of score model MODEL
#   objective_flags       leaves in OBJECTIVE_FLAGS what step 3 and the evaluation are told of them

settle_objectives() {
    source presets/objectives.sh
    check_objectives || return
    local model kind variable
    for model in "${SCORE_MODELS[@]}"; do
        kind=${model%%/*} variable=$(model_variable "$model")
        # What run_all.sh has settled for its pieces gives way to what a training script of one's own says.
        if [ -z "${!variable:-}" ] || [[ " ${SETTLED_MODELS:-} " == *" $variable "* ]]; then
            check_only "${kind^^}_MODEL" "$kind" || return
            kind=${kind^^}_MODEL
            printf -v "$variable" %s "${!kind:-${!variable:-$OUTPUT/$model}}"
            export SETTLED_MODELS="${SETTLED_MODELS:-} $variable"
        fi
        export "${variable?}"
    done
}

check_objectives() {
    local objective kind name last=0 rank
    OBJECTIVE_NAMES=() SCORE_MODELS=()
    for objective in $OBJECTIVES; do
        kind=${objective%%/*} name=${objective#*/} name=${name%%=*}
        case $objective in
            reward/*=* | cost/*=*)
                refuse_objective "$objective" "a function is function/NAME=...; a model MODEL_NAME=PATH"; return ;;
            reward/?*) rank=1 ;;
            cost/?*) rank=2 ;;
            function/?*=?*:?*) rank=3 ;;
            *) refuse_objective "$objective" "none of reward/NAME, cost/NAME, function/NAME=FILE:FUNCTION"; return ;;
        esac
        if ! [[ $name =~ ^[A-Za-z0-9_]+$ ]]; then
            refuse_objective "$objective" "a name is made of letters, digits and _"; return
        elif is_objective "$name"; then
            refuse_objective "$objective" "there is another objective of this name"; return
        elif [ "$rank" -lt "$last" ]; then
            refuse_objective "$objective" "rewards come first, then costs, then functions"; return
        fi
        OBJECTIVE_NAMES+=("$name") last=$rank
        if [ "$rank" -lt 3 ]; then SCORE_MODELS+=("$objective"); fi
    done
    if [ ${#OBJECTIVE_NAMES[@]} -eq 0 ]; then refuse_objective "" "at least one is needed"; fi
}

refuse_objective() { # $1, because of $2
    echo "error: OBJECTIVES: ${1:+$1: }$2" >&2
    return 2
}

check_only() { # variable $1 names the model of the only objective of kind $2
    if [ -n "${!1:-}" ] && [ "$(names_of "$2" | wc -l)" -gt 1 ]; then
        refuse_variable "$1" "there are several of them; MODEL_NAME=PATH tells which"
    fi
}

is_objective() { [[ " ${OBJECTIVE_NAMES[*]} " == *" $1 "* ]]; }

names_of() {
    local objective
    for objective in $OBJECTIVES; do
        if [[ $objective == "$1"/* ]]; then objective=${objective#*/} && echo "${objective%%=*}"; fi
    done
}

others_of() {
    local name
    for name in "${OBJECTIVE_NAMES[@]}"; do if [ "$name" != "$1" ]; then echo "$name"; fi; done
}

model_variable() { echo "MODEL_${1#*/}"; }

objective_flags() {
    local objective variable
    OBJECTIVE_FLAGS=()
    for objective in $OBJECTIVES; do
        variable=$(model_variable "$objective")
        case $objective in
            function/*) OBJECTIVE_FLAGS+=(--reward_function "${objective#*/}") ;;
            *) OBJECTIVE_FLAGS+=("--${objective%%/*}_model" "${objective#*/}=${!variable}") ;;
        esac
    done
}
