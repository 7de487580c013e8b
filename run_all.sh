#!/usr/bin/env bash
# The whole job: data, stages 1-3, evaluation, report.
#
#   bash run_all.sh [PRESET] [--fresh | --dry_run]
#
#   tiny     (default) SafeRLHF-mini on a laptop: every method and front of the paper, two conditions
#   smoke    the same in small: two ranks with ZeRO-2, two aligned policies
#   hh       human data in DATA_DIR: HH-RLHF files and safety pairs
#   three    SafeRLHF-mini with a third objective, a function: conciseness
#   dpo      SafeRLHF-mini without sampling: per-objective DPO, MODPO, RACO, GAPO on DPO, beside fronts of the paper
#   cgpo     SafeRLHF-mini with a reward that can be flattered: PPO exploits it, CGPO's judges do not let it pass
#   mistral_7b   the paper's set-up, for 8 GPUs (see presets/mistral_7b.sh)
#
#   --fresh     start over; otherwise what is finished stays, what was begun goes on, and the rest is done
#   --dry_run   say what would be done, check that data, models and machine fit together, plan the memory; write nothing;
#               exit code 0: all is well, 1: a piece does not fit in memory, 2: bad input, every mistake in a line
#   JOBS=N      pieces side by side (default: one a core, at most 4)
#   RUNS="..."  other policies than the preset's, of the list below; METHODS=FILE adds rows to it (see presets/methods.txt)
#   OBJECTIVES="reward/NAME cost/NAME function/NAME=FILE:FUNCTION"   other objectives (see utils/launch/objectives.sh)
#   SEEDS=N     every policy with N seeds, the report has means and spread over them (SFT, reward and cost model once)
#   TASKS=FILE JUDGES="NAME=..." WARM_START=RUN   of runs with tasks (cgpo_...): see presets/cgpo.sh and docs/cgpo.md
#   JUDGE="--base_url URL --model NAME"   a language model judges the responses (see eval/judge.py), not the gold scores
#   OUTPUT=DIR  instead of output/PRESET
#   ACTOR_MODEL REWARD_MODEL COST_MODEL MODEL_NAME   models that are there already, used in place of training them
#   RANKS=N     ranks of every training; on several machines: NNODES, NODE_RANK, ... or HOSTFILE (see utils/launch/launch.sh)
#   GPUS=N GPU_MEMORY=80 HOST_MEMORY=512   with --dry_run: GPUs of a machine, GiB of each, and of the machine itself
#   DATA_DIR=DIR FRACTION=0.25   hh: where the data is, and how much of it (see presets/hh.sh for the model's size)
#   PYTHON=...  an interpreter that has the packages of requirements.txt, instead of .venv
#   ANY_VERSIONS=1   with PYTHON: take other versions of them, with a warning (packages that are missing stay an error)

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/utils/launch/variables.sh"
for variable in OUTPUT DATA_DIR; do # relative to where the command is given, also while they are not there
    if [ -n "${!variable:-}" ]; then export "$variable=$(realpath -m "${!variable}")"; fi
done
make_paths_absolute
cd "$(dirname "${BASH_SOURCE[0]}")"

source utils/launch/objectives.sh
source utils/launch/methods.sh

show_help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    echo "Runs, of presets/methods.txt (w: the weight of the first of two objectives, or all weights, such as 0.6_0.2_0.2):"
    echo
    read_methods
    list_methods
}

PRESET=tiny
FRESH=false
for argument in "$@"; do
    case $argument in
        -h | --help) show_help; exit ;;
        --fresh) FRESH=true ;;
        --dry_run) DRY_RUN=true ;;
        tiny | smoke | hh | three | dpo | cgpo | mistral_7b) PRESET=$argument ;;
        *)
            echo "error: $argument: neither a preset (tiny, smoke, hh, three, dpo, cgpo, mistral_7b) nor --fresh or --dry_run" >&2
            exit 2 ;;
    esac
done
source utils/launch/machines.sh
export DRY_RUN

note_unread_variables() { # those that are set, but serve other presets or dry runs
    local name names=() of_hh="DATA_DIR FRACTION TEST_FRACTION VOCAB_SIZE HIDDEN_SIZE NUM_LAYERS NUM_HEADS"
    local of_mistral="TRAIN_SFT TRAIN_REWARD ON_CPU BASE_MODEL TOKENIZER SFT_DATA SFT_VALIDATION PREFERENCE_DATA"
    of_mistral+=" PREFERENCE_VALIDATION PROMPTS TEST_PROMPTS STEP1_FLAGS STEP2_FLAGS"
    if [ "$PRESET" != hh ]; then names+=($of_hh); fi
    if [ "$PRESET" != mistral_7b ]; then names+=($of_mistral); fi
    for name in "${names[@]}"; do
        if [ -n "${!name:-}" ]; then echo "note: $name: preset $PRESET does not read it"; fi
    done
    for name in GPU_MEMORY HOST_MEMORY; do
        if ! $DRY_RUN && [ -n "${!name:-}" ]; then echo "note: $name: serves --dry_run alone"; fi
    done
}

note_unknown_models() { # of objectives that there are not
    local name
    for name in "${!MODEL_@}"; do
        if ! is_objective "${name#MODEL_}"; then echo "note: $name: ${name#MODEL_} is none of the objectives"; fi
    done
}

check_methods() { # the report reads rows of one's own at the end, and more closely
    if [ -z "${METHODS:-}" ]; then return; fi
    "$PYTHON" -c "
import sys
from pathlib import Path
from eval.results.methods import use_methods
from utils.process.errors import run_main
run_main(lambda: use_methods(Path(sys.argv[1])))" "$METHODS"
}

kinds_and_names() { # of the objectives, in a line
    local objective found=()
    for objective in $OBJECTIVES; do found+=("${objective%%=*}"); done
    echo "${found[*]}"
}

check_same_objectives() { # what is finished in OUTPUT is of these, and is not made again
    local kept=$OUTPUT/objectives.txt
    if $FRESH || ! [ -f "$kept" ] || [ "$(cat "$kept")" = "$(kinds_and_names)" ]; then return; fi
    echo "error: OUTPUT=$OUTPUT: is of the objectives $(cat "$kept"); name another folder, or start over with --fresh" >&2
    return 2
}

check_numbers 1 JOBS POLICY_JOBS RESPONSE_JOBS SEEDS RANKS THREADS MAX_LENGTH MAX_NEW_TOKENS VOCAB_SIZE HIDDEN_SIZE \
    NUM_LAYERS NUM_HEADS
check_numbers 0 SEED GPUS
note_unread_variables
export OUTPUT=${OUTPUT:-output/$PRESET}
export LAUNCHER_PIDS=$$ # training ends when this process is gone
GOLD=() JUDGE_PROMPTS=() # flags of eval/score.py and eval/judge.py, where a preset has them
choose_judge_prompts() { :; }
SCRIPTS=$PRESET # whose training scripts are run
source "presets/$PRESET.sh"
settle_objectives
read_methods
note_unknown_models
source utils/launch/setup_environment.sh
check_numbers 1 NNODES
if several_machines; then JOBS=1 POLICY_JOBS=1; fi # they meet in every training, one after another, at one port
source utils/launch/pieces.sh
RESPONSE_JOBS=${RESPONSE_JOBS:-$JOBS}
check_machines || exit 2
check_methods || exit 2
check_same_objectives || exit 2
if $FRESH && [ "${NNODES:-1}" -gt 1 ]; then
    echo "error: --fresh: with NNODES=$NNODES, remove $OUTPUT before the machines start" >&2
    exit 2
fi

# Models: made by stages 1 and 2, or there already.
export ACTOR_MODEL=${ACTOR_MODEL:-$OUTPUT/sft}

SEED=${SEED:-42} # of the runs that name none
SEEDS=${SEEDS:-1}
for run in $RUNS; do check_run "$run"; done
check_warm_start

check_scripts() { # every score model is made by something, or there already
    local model
    for model in "${SCORE_MODELS[@]}"; do
        if ! is_ready_made "$model" && ! [ -f "$(script_of "$model")" ]; then
            refuse_objective "$model" "there is no $(script_of "$model"), and $(model_variable "$model") names no model"
            return
        fi
    done
}

with_seeds() { # all runs, then all of them again for every further seed; each once
    local seed run
    {
        printf '%s\n' $RUNS
        for ((seed = SEED + 1; seed < SEED + SEEDS; seed++)); do
            for run in $RUNS; do if [[ $run != *"#"* ]]; then echo "$run#$seed"; fi; done
        done
    } | awk '!seen[$0]++'
}
RUNS=$(with_seeds)
source utils/launch/plan.sh

PARTS=(data tokenizer base sft reward cost frozen policies eval report logs)

prepare_output() {
    local reason part
    reason=$(mkdir -p "$OUTPUT" 2>&1) || { echo "error: OUTPUT=$OUTPUT: ${reason##*: }" >&2; exit 2; }
    if ! [ -w "$OUTPUT" ]; then echo "error: OUTPUT=$OUTPUT: not writable" >&2; exit 2; fi
    if [ "${NODE_RANK:-0}" -gt 0 ]; then return; fi
    if [ -n "${METHODS:-}" ] && ! [ "$METHODS" -ef "$OUTPUT/methods.txt" ]; then
        cp "$METHODS" "$OUTPUT/methods.txt" # for the report
    fi
    if $FRESH; then
        for part in "${PARTS[@]}"; do rm -rf "${OUTPUT:?}/$part" "$OUTPUT/.$part".????????; done
    fi
    kinds_and_names > "$OUTPUT/objectives.txt"
    remove_left_overs
}

remove_left_overs() { # of killed runs, under names of their own; a run beside this one may be writing what is younger
    local part an_hour_old=(-mmin +60)
    for part in "${PARTS[@]}"; do
        find "$OUTPUT" -maxdepth 1 -name ".$part.????????" "${an_hour_old[@]}" -exec rm -rf {} +
        if ! [ -d "$OUTPUT/$part" ]; then continue; fi
        find "$OUTPUT/$part" -depth -type d -name '.*.????????' "${an_hour_old[@]}" -exec rm -rf {} +
        find "$OUTPUT/$part" -type f -name '.*.*[0-9]' "${an_hour_old[@]}" -delete
    done 2>/dev/null || true # that run may remove what find has just seen
}

pipeline() {
    if makes_data; then
        stage "data, tokenizer, base model"
        piece data "$DATA_SECONDS" "$OUTPUT/base/config.json" at_first_node "$OUTPUT/base/config.json" make_data
    fi
    stage "step 1: supervised fine-tuning"
    piece_or_ready sft sft "$SFT_SECONDS" "step1_sft/training_scripts/$SCRIPTS.sh"
    stage "step 2: reward and cost models"
    for model in "${SCORE_MODELS[@]}"; do
        seconds=${model%%/*} seconds=${seconds^^}_SECONDS
        piece_or_ready "${model/\//_}" "$model" "${!seconds}" "$(script_of "$model")"
    done
    stage "step 3: policies" "${POLICY_JOBS:-$JOBS}"
    for run in $RUNS; do
        if is_trained "$run" && ! follows_policies "$run"; then make_policy "$run" "$POLICY_SECONDS"; fi
    done
    following=$(for run in $RUNS; do if is_trained "$run" && follows_policies "$run"; then echo "$run"; fi; done)
    if [ -n "$following" ]; then
        stage "step 3: policies that are made from others" "${POLICY_JOBS:-$JOBS}"
        for run in $following; do make_policy "$run" "$POLICY_SECONDS"; done
    fi
    if [ "${NODE_RANK:-0}" -gt 0 ]; then return; fi # the first machine does the rest
    averaged=$(for run in $RUNS; do if ! is_trained "$run"; then echo "$run"; fi; done)
    if [ -n "$averaged" ]; then
        stage "averages of policies"
        for run in $averaged; do make_policy "$run" 4; done
    fi
    stage "responses" "$RESPONSE_JOBS"
    for ((part = 0; part < RESPONSE_JOBS; part++)); do
        piece "responses_$((part + 1))" $((RESPONSE_SECONDS * $(wc -w <<< "$RUNS") / RESPONSE_JOBS)) \
            "$(report_if_current)" respond "$part"
    done
    stage "scores, judgements, report"
    piece evaluation "$EVALUATION_SECONDS" "$(report_if_current)" evaluate
}

make_policy() { # run $1, which takes about $2 seconds
    piece "$1" "$2" "$(if_current "policies/$1")" bash "$(script_of "policies/$1")" "$1"
}

script_of() { # what makes score model or policy $1; a policy that no stage trains comes from stage 3's
    local maker
    case $1 in
        policies/*)
            maker=$(maker_of "${1#*/}")
            if ! is_trained "${1#*/}"; then maker=step3_gapo; fi
            echo "$maker/training_scripts/${SCRIPTS}_policy.sh" ;;
        *) echo "step2_reward/training_scripts/${SCRIPTS}_${1#*/}.sh" ;;
    esac
}

is_trained() { find_method "$1" && [ -d "${METHOD_MAKERS[ROW]}/training_scripts" ]; } # whether a stage makes run $1

follows_policies() { # whether other policies have to be there before run $1
    local sources
    sources=$(sources_of_run "$1")
    [[ $sources == *policies/* ]]
}

piece_or_ready() { # piece $1 makes model $2, which takes about $3 seconds, by script $4; unless it is there already
    if is_ready_made "$2"; then
        if ! $PLANNING; then echo "[$1] $(place_of "$2") is used as it is"; fi
    else
        piece "$1" "$3" "$(if_current "$2")" bash "$4"
    fi
}

at_first_node() { # one machine makes file $1 by the command that follows, the others wait for it
    local file=$1
    shift
    if [ "${NODE_RANK:-0}" -eq 0 ]; then "$@"; return; fi
    until finished "$file"; do sleep 2; done
}

makes_data() { declare -F make_data > /dev/null; } # whether the preset does

folder_of() { # run $1
    if [ "$1" = sft ]; then place_of sft; else place_of "policies/$1"; fi
}

place_of() { # folder or hub name of model $1
    local variable
    case $1 in
        sft) echo "$ACTOR_MODEL" ;;
        reward/* | cost/*) variable=$(model_variable "$1") && echo "${!variable}" ;;
        *) echo "$OUTPUT/$1" ;;
    esac
}

is_ready_made() { [ "$(place_of "$1")" != "$OUTPUT/$1" ]; } # whether model $1 is there already, wherever

sources_of() { # the models from which model $1 is made
    if is_ready_made "$1"; then return; fi
    case $1 in
        base) ;;
        sft) if makes_data; then echo base; fi ;;
        reward/* | cost/*) echo sft ;;
        policies/*) sources_of_run "${1#*/}" ;;
    esac
}

is_newer() { # model $1 than model $2; a hub name is not
    [ "$(place_of "$1")/config.json" -nt "$(place_of "$2")/config.json" ]
}

is_current() { # whether model $1 is finished; of an average, which costs nothing, also whether its sources are, and older
    local source
    if is_ready_made "$1"; then return; fi
    if ! finished "$OUTPUT/$1/config.json"; then return 1; fi
    if [[ $1 == policies/* ]] && ! is_trained "${1#*/}"; then
        for source in $(sources_of "$1"); do
            if ! is_current "$source" || is_newer "$source" "$1"; then return 1; fi
        done
    fi
}

if_current() { # the mark of model $1, for \`piece\`, or nothing
    local source
    if ! is_current "$1"; then return; fi
    for source in $(sources_of "$1"); do
        if $PLANNING && is_newer "$source" "$1"; then
            echo "note: $1 is older than $source; remove $OUTPUT/$1 to have it made again" >&2
        fi
    done
    echo "$OUTPUT/$1/config.json"
}

report_if_current() { # the report's path if it is of all models as they are, else nothing
    local run model scores report=$OUTPUT/report/results.json
    if [ -n "${JUDGE:-}" ]; then return; fi # it keeps its answers, and knows what is new to it
    if [ -n "${METHODS:-}" ] && [ "$METHODS" -nt "$report" ]; then return; fi
    for run in sft $RUNS; do
        model=$(folder_of "$run") scores=$OUTPUT/eval/$run.json
        if { [ "$run" != sft ] && ! is_current "policies/$run"; } || ! is_current sft || ! [ "$report" -nt "$scores" ]; then return; fi
        if ! [ "$scores" -nt "$model/config.json" ]; then return; fi
        for model in "${SCORE_MODELS[@]}"; do
            if ! [ "$scores" -nt "$(place_of "$model")/config.json" ]; then return; fi
        done
    done
    echo "$report"
}

respond() { # every RESPONSE_JOBS-th policy from number $1 on answers the test prompts, on a GPU of its own
    local run gpus number=0 policies=()
    gpus=$(gpus_here)
    if [ "$gpus" -gt 0 ]; then
        CUDA_VISIBLE_DEVICES=$(visible_gpus | sed -n "$(($1 % gpus + 1))p")
        export CUDA_VISIBLE_DEVICES
    fi
    for run in sft $RUNS; do
        if ((number++ % RESPONSE_JOBS == $1)); then policies+=("$run=$(folder_of "$run")"); fi
    done
    if [ ${#policies[@]} -eq 0 ]; then return; fi
    OMP_NUM_THREADS=$(((CORES + RESPONSE_JOBS - 1) / RESPONSE_JOBS)) evaluation_command eval/generate.py \
        --policy "${policies[@]}" --reference_model "$ACTOR_MODEL" --data "$TEST_PROMPTS" --overlong drop \
        --max_new_tokens "$MAX_NEW_TOKENS" ${TASKS:+--tasks "$TASKS"} ${GENERATE_FLAGS:-} --output_dir "$OUTPUT/eval"
}

evaluation_command() { "$PYTHON" "$@"; } # a dry run only checks it

evaluate() {
    local run responses=()
    for run in sft $RUNS; do responses+=("$OUTPUT/eval/responses/$run.jsonl"); done
    objective_flags
    evaluation_command eval/score.py --responses "${responses[@]}" "${OBJECTIVE_FLAGS[@]}" "${GOLD[@]}" \
        ${TASKS:+--tasks "$TASKS"} ${JUDGES:+--judge $JUDGES} ${SCORE_FLAGS:-} \
        --output_dir "$OUTPUT/eval"
    judge_policies
    evaluation_command eval/report.py --input_dir "$OUTPUT"
}

judge_policies() { # those without a preference, of one seed, against the SFT policy, in what models score; if there is a judge
    local run judged=() judge=("${GOLD[@]}")
    if [ -n "${JUDGE:-}" ]; then judge=($JUDGE); fi
    for run in $RUNS; do
        if [ -z "$(seed_of "$run")" ] && ! is_on_front "$run"; then judged+=("$run=$OUTPUT/eval/responses/$run.jsonl"); fi
    done
    if [ ${#judge[@]} -eq 0 ] || [ ${#judged[@]} -eq 0 ] || [ ${#SCORE_MODELS[@]} -eq 0 ]; then return; fi
    choose_judge_prompts
    evaluation_command eval/judge.py --policy "${judged[@]}" --baseline sft="$OUTPUT/eval/responses/sft.jsonl" \
        --objective $(names_of reward) $(names_of cost) "${JUDGE_PROMPTS[@]}" "${judge[@]}" --output_dir "$OUTPUT/eval/judge"
}

check_scripts || exit 2
if $DRY_RUN; then dry_run; fi # ends here
prepare_output
pin_revisions
echo "preset $PRESET -> $OUTPUT ($JOBS pieces at once)"
run_pipeline
if [ "${NODE_RANK:-0}" -gt 0 ]; then echo "this machine's part is done; the first one evaluates"; exit; fi
echo "done in $(clock $((SECONDS - STARTED))): open $OUTPUT/report/report.html"
echo "training curves: $PYTHON -m tensorboard.main --logdir $OUTPUT/policies"
