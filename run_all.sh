#!/usr/bin/env bash
# The whole job: data, stages 1-3, evaluation, report.
#
#   bash run_all.sh [PRESET] [--fresh | --dry_run]
#
#   tiny     (default) SafeRLHF-mini on a laptop: every method and front of the paper, two conditions
#   smoke    the same in small: two ranks with ZeRO-2, two aligned policies
#   hh       human data in DATA_DIR: HH-RLHF files and safety pairs
#   mistral_7b   the paper's set-up, for 8 GPUs (see presets/mistral_7b.sh)
#
#   --fresh     start over; otherwise what is finished stays, what was begun goes on, and the rest is done
#   --dry_run   say what would be done, check that data, models and machine fit together, plan the memory; write nothing;
#               exit code 0: all is well, 1: a piece does not fit in memory, 2: bad input, every mistake in a line
#   JOBS=N      pieces side by side (default: one a core, at most 4)
#   RUNS="..."  other policies than the preset's (see step3_gapo/training_scripts/run_names.sh)
#   SEEDS=N     every policy with N seeds, the report has means and spread over them (SFT, reward and cost model once)
#   JUDGE="--base_url URL --model NAME"   a language model judges the responses (see eval/judge.py), not the gold scores
#   OUTPUT=DIR  instead of output/PRESET
#   ACTOR_MODEL REWARD_MODEL COST_MODEL   models that are there already, used in place of training them
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

PRESET=tiny
FRESH=false
for argument in "$@"; do
    case $argument in
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --fresh) FRESH=true ;;
        --dry_run) DRY_RUN=true ;;
        tiny | smoke | hh | mistral_7b) PRESET=$argument ;;
        *) echo "error: $argument: neither a preset (tiny, smoke, hh, mistral_7b) nor --fresh or --dry_run" >&2; exit 2 ;;
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
check_numbers 1 JOBS POLICY_JOBS RESPONSE_JOBS SEEDS RANKS THREADS MAX_LENGTH MAX_NEW_TOKENS VOCAB_SIZE HIDDEN_SIZE \
    NUM_LAYERS NUM_HEADS
check_numbers 0 SEED GPUS
note_unread_variables
export OUTPUT=${OUTPUT:-output/$PRESET}
export LAUNCHER_PIDS=$$ # training ends when this process is gone
GOLD=() JUDGE_PROMPTS=() # flags of eval/score.py and eval/judge.py, where a preset has them
choose_judge_prompts() { :; }
source "presets/$PRESET.sh"
source step3_gapo/training_scripts/run_names.sh
source utils/launch/setup_environment.sh
check_numbers 1 NNODES
if several_machines; then JOBS=1 POLICY_JOBS=1; fi # they meet in every training, one after another, at one port
source utils/launch/pieces.sh
RESPONSE_JOBS=${RESPONSE_JOBS:-$JOBS}
check_machines || exit 2
if $FRESH && [ "${NNODES:-1}" -gt 1 ]; then
    echo "error: --fresh: with NNODES=$NNODES, remove $OUTPUT before the machines start" >&2
    exit 2
fi

# Models: made by stages 1 and 2, or there already.
export ACTOR_MODEL=${ACTOR_MODEL:-$OUTPUT/sft}
export REWARD_MODEL=${REWARD_MODEL:-$OUTPUT/reward/helpfulness} COST_MODEL=${COST_MODEL:-$OUTPUT/cost/harmlessness}

SEED=${SEED:-42} # of the runs that name none
SEEDS=${SEEDS:-1}
for run in $RUNS; do check_run "$run"; done

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

PARTS=(data tokenizer base sft reward cost policies eval report logs)

prepare_output() {
    local reason part
    reason=$(mkdir -p "$OUTPUT" 2>&1) || { echo "error: OUTPUT=$OUTPUT: ${reason##*: }" >&2; exit 2; }
    if ! [ -w "$OUTPUT" ]; then echo "error: OUTPUT=$OUTPUT: not writable" >&2; exit 2; fi
    if [ "${NODE_RANK:-0}" -gt 0 ]; then return; fi
    if $FRESH; then
        for part in "${PARTS[@]}"; do rm -rf "${OUTPUT:?}/$part" "$OUTPUT/.$part".????????; done
    fi
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
    piece_or_ready sft sft "$SFT_SECONDS" "step1_sft/training_scripts/$PRESET.sh"
    stage "step 2: reward and cost model"
    piece_or_ready reward_helpfulness reward/helpfulness "$REWARD_SECONDS" \
        "step2_reward/training_scripts/${PRESET}_helpfulness.sh"
    piece_or_ready cost_harmlessness cost/harmlessness "$COST_SECONDS" \
        "step2_reward/training_scripts/${PRESET}_harmlessness.sh"
    stage "step 3: policies" "${POLICY_JOBS:-$JOBS}"
    for run in $RUNS; do
        if [[ $run != rewarded_soup_* ]]; then make_policy "$run" "$POLICY_SECONDS"; fi
    done
    if [ "${NODE_RANK:-0}" -gt 0 ]; then return; fi # the first machine does the rest
    if [[ " $RUNS" == *[[:space:]]rewarded_soup_* ]]; then
        stage "rewarded soups"
        for run in $RUNS; do
            if [[ $run == rewarded_soup_* ]]; then make_policy "$run" 4; fi
        done
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
    piece "$1" "$2" "$(if_current "policies/$1")" bash "step3_gapo/training_scripts/${PRESET}_policy.sh" "$1"
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
    case $1 in
        sft) echo "$ACTOR_MODEL" ;;
        reward/helpfulness) echo "$REWARD_MODEL" ;;
        cost/harmlessness) echo "$COST_MODEL" ;;
        *) echo "$OUTPUT/$1" ;;
    esac
}

is_ready_made() { [ "$(place_of "$1")" != "$OUTPUT/$1" ]; } # whether model $1 is there already, wherever

sources_of() { # the models from which model $1 is made
    local expert
    if is_ready_made "$1"; then return; fi
    case $1 in
        base) ;;
        sft) if makes_data; then echo base; fi ;;
        reward/* | cost/*) echo sft ;;
        policies/rewarded_soup_*) for expert in $(experts_of "${1#*/}"); do echo "policies/$expert"; done ;;
        policies/*) echo sft reward/helpfulness cost/harmlessness ;;
    esac
}

is_newer() { # model $1 than model $2; a hub name is not
    [ "$(place_of "$1")/config.json" -nt "$(place_of "$2")/config.json" ]
}

is_current() { # whether model $1 is finished; of a soup, which costs nothing, also whether its experts are, and older
    local expert
    if is_ready_made "$1"; then return; fi
    if ! finished "$OUTPUT/$1/config.json"; then return 1; fi
    if [[ $1 == policies/rewarded_soup_* ]]; then
        for expert in $(sources_of "$1"); do
            if ! is_current "$expert" || is_newer "$expert" "$1"; then return 1; fi
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
    for run in sft $RUNS; do
        model=$(folder_of "$run") scores=$OUTPUT/eval/$run.json
        if { [ "$run" != sft ] && ! is_current "policies/$run"; } || ! is_current sft || ! [ "$report" -nt "$scores" ]; then return; fi
        for model in "$model" "$REWARD_MODEL" "$COST_MODEL"; do
            if ! [ "$scores" -nt "$model/config.json" ]; then return; fi
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
        --max_new_tokens "$MAX_NEW_TOKENS" ${GENERATE_FLAGS:-} --output_dir "$OUTPUT/eval"
}

evaluation_command() { "$PYTHON" "$@"; } # a dry run only checks it

evaluate() {
    local run responses=()
    for run in sft $RUNS; do responses+=("$OUTPUT/eval/responses/$run.jsonl"); done
    evaluation_command eval/score.py --responses "${responses[@]}" --reward_model helpfulness="$REWARD_MODEL" \
        --cost_model harmlessness="$COST_MODEL" "${GOLD[@]}" ${SCORE_FLAGS:-} --output_dir "$OUTPUT/eval"
    judge_policies
    evaluation_command eval/report.py --input_dir "$OUTPUT"
}

judge_policies() { # those without a preference, of one seed, against the SFT policy; where there is a judge
    local run judged=() judge=("${GOLD[@]}")
    if [ -n "${JUDGE:-}" ]; then judge=($JUDGE); fi
    for run in $RUNS; do
        case $run in
            *"#"* | p_gapo_* | rewarded_soup_* | morlhf_0.[!5]*) ;;
            *) judged+=("$run=$OUTPUT/eval/responses/$run.jsonl") ;;
        esac
    done
    if [ ${#judge[@]} -eq 0 ] || [ ${#judged[@]} -eq 0 ]; then return; fi
    choose_judge_prompts
    evaluation_command eval/judge.py --policy "${judged[@]}" --baseline sft="$OUTPUT/eval/responses/sft.jsonl" \
        --objective helpfulness harmlessness "${JUDGE_PROMPTS[@]}" "${judge[@]}" --output_dir "$OUTPUT/eval/judge"
}

if $DRY_RUN; then dry_run; fi # ends here
prepare_output
pin_revisions
echo "preset $PRESET -> $OUTPUT ($JOBS pieces at once)"
run_pipeline
if [ "${NODE_RANK:-0}" -gt 0 ]; then echo "this machine's part is done; the first one evaluates"; exit; fi
echo "done in $(clock $((SECONDS - STARTED))): open $OUTPUT/report/report.html"
echo "training curves: $PYTHON -m tensorboard.main --logdir $OUTPUT/policies"
