#!/usr/bin/env bash
# The whole job: data, stages 1-3, evaluation, report.
#
#   bash run_all.sh [PRESET] [--fresh]
#
#   tiny     (default) SafeRLHF-mini, eight aligned policies, on a laptop
#   smoke    the same in small: two ranks with ZeRO-2, two aligned policies
#   hh       human data in DATA_DIR: HH-RLHF files and safety pairs
#
#   --fresh     start over; otherwise what is finished stays and the rest is done
#   JOBS=N      pieces side by side (default: one a core, at most 4)
#   RUNS="..."  other policies than the preset's (see step3_gapo/training_scripts/train_policy.sh)
#   OUTPUT=DIR  instead of output/PRESET
#   DATA_DIR=DIR FRACTION=0.25   hh: where the data is, and how much of it (see presets/hh.sh for the model's size)
#   PYTHON=...  an interpreter that has the packages of requirements.txt, instead of .venv

set -euo pipefail
for variable in OUTPUT DATA_DIR; do # relative to where the command is given
    if [ -n "${!variable:-}" ]; then export "$variable=$(realpath -m "${!variable}")"; fi
done
cd "$(dirname "${BASH_SOURCE[0]}")"

PRESET=tiny
FRESH=false
for argument in "$@"; do
    case $argument in
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --fresh) FRESH=true ;;
        tiny | smoke | hh) PRESET=$argument ;;
        *) echo "error: $argument: neither a preset (tiny, smoke, hh) nor --fresh" >&2; exit 2 ;;
    esac
done
export OUTPUT=${OUTPUT:-output/$PRESET}
source "presets/$PRESET.sh"
source utils/setup_environment.sh
source utils/pieces.sh

if $FRESH; then
    for part in data tokenizer base sft reward cost policies eval report logs; do rm -rf "${OUTPUT:?}/$part"; done
fi
mkdir -p "$OUTPUT"
echo "preset $PRESET -> $OUTPUT ($JOBS pieces at once)"

pipeline() {
    stage "data, tokenizer, base model"
    piece data "$DATA_SECONDS" "$OUTPUT/base/config.json" make_data
    stage "step 1: supervised fine-tuning"
    piece sft "$SFT_SECONDS" "$OUTPUT/sft/config.json" bash "step1_sft/training_scripts/$PRESET.sh"
    stage "step 2: reward and cost model"
    piece reward_helpfulness "$REWARD_SECONDS" "$OUTPUT/reward/helpfulness/config.json" \
        bash "step2_reward/training_scripts/${PRESET}_helpfulness.sh"
    piece cost_harmlessness "$COST_SECONDS" "$OUTPUT/cost/harmlessness/config.json" \
        bash "step2_reward/training_scripts/${PRESET}_harmlessness.sh"
    stage "step 3: policies" "${POLICY_JOBS:-$JOBS}"
    for run in $RUNS; do
        piece "$run" "$POLICY_SECONDS" "$OUTPUT/policies/$run/config.json" \
            bash "step3_gapo/training_scripts/${PRESET}_policy.sh" "$run"
    done
    stage "evaluation and report" "$JOBS"
    piece evaluation "$EVALUATION_SECONDS" "$(report_if_current)" evaluate
}

report_if_current() { # the report's path if every policy was evaluated as it is, else nothing
    local run policy
    for run in sft $RUNS; do
        policy=$OUTPUT/policies/$run
        if [ "$run" = sft ]; then policy=$OUTPUT/sft; fi
        if ! [ "$OUTPUT/eval/$run.json" -nt "$policy/config.json" ]; then return; fi
    done
    echo "$OUTPUT/report/results.json"
}

evaluate() {
    local policies=("sft=$OUTPUT/sft") responses=("$OUTPUT/eval/responses/sft.jsonl")
    for run in $RUNS; do
        policies+=("$run=$OUTPUT/policies/$run")
        responses+=("$OUTPUT/eval/responses/$run.jsonl")
    done
    "$PYTHON" eval/generate.py --policy "${policies[@]}" --reference_model "$OUTPUT/sft" --data "$TEST_PROMPTS" \
        --overlong drop --max_new_tokens "$MAX_NEW_TOKENS" --output_dir "$OUTPUT/eval"
    "$PYTHON" eval/score.py --responses "${responses[@]}" --reward_model helpfulness="$OUTPUT/reward/helpfulness" \
        --cost_model harmlessness="$OUTPUT/cost/harmlessness" ${GOLD:-} --output_dir "$OUTPUT/eval"
    "$PYTHON" eval/report.py --input_dir "$OUTPUT"
}

run_pipeline
echo "done in $(clock $((SECONDS - STARTED))): open $OUTPUT/report/report.html"
echo "training curves: $PYTHON -m tensorboard.main --logdir $OUTPUT/policies"
