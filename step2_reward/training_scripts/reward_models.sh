#!/usr/bin/env bash
# Reward models with several attributes on SafeRLHF-mini: what docs/reward_models.md reports.
#
#   bash step2_reward/training_scripts/reward_models.sh      about 20 minutes a seed on 2 cores
#   SEEDS="42 43 44" OUTPUT=output/reward_models JOBS=2      the seeds, where everything goes, pieces side by side
#
# Once: data (ratings, overall preferences, instructions), a tokenizer that knows them, an SFT model. Then for every seed s,
# in OUTPUT/seed_s:
#
#   ratings, ratings_NAME      one model of all attributes, and one of each
#   armorm, armorm_raw         on the first of these, frozen: attributes and gate, with verbosity taken out and without
#   reward/overall    Bradley-Terry on the overall preference alone
#   mapl, plain       pairs with instructions, with prompt pairs beside them and without
#
# and evaluations of these on held-out pairs in OUTPUT/seed_s/evaluation. What is finished stays, what was begun goes on.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"
source utils/launch/pieces.sh

PRESET=reward_models
OUTPUT=${OUTPUT:-output/reward_models}
SEEDS=${SEEDS:-42 43 44}
ATTRIBUTES="helpfulness harmlessness conciseness clarity verbosity"
# Kinds of instructions that some of the benchmark's responses meet and some break.
KINDS="at_least_words at_most_words about_words at_least_sentences at_most_sentences short_sentences contains_word
    repeats_word lacks_word opens_with closes_with no_first_person no_commas"
SCRIPTS=step2_reward/training_scripts
DATA=$OUTPUT/data
export LAUNCHER_PIDS=$$ # training ends when this process is gone

make_data() {
    local part
    "$PYTHON" -m utils.safe_rlhf_mini --output_dir "$DATA" --seed 0 --num_validation 1500 \
        --reward_models --num_held_out_ratings 3000 ${CORPUS_SIZE:-}
    for part in train:0.2 validation:1.0; do
        "$PYTHON" utils/make_prompt_pairs.py --data "$DATA/preferences_${part%:*}.jsonl:${part#*:}" --kinds $KINDS \
            --output_dir "$DATA/instructions_${part%:*}"
    done
    "$PYTHON" utils/make_base.py --sft_data "$DATA/sft_train.jsonl" \
        --preference_data "$DATA/preferences_train.jsonl,$DATA/instructions_train/instruction_pairs.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" \
        --vocab_size 1024 --hidden_size 64 --num_layers 3 --num_heads 4 --num_kv_heads 2 --intermediate_size 160
}

train_sft() { OUTPUT=$OUTPUT bash step1_sft/training_scripts/tiny.sh; }

model() { # NAME of seed $1, as long as $3 seconds, by script $4 with the variables that follow
    local seed=$1 name=$2 seconds=$3 script=$4
    shift 4
    piece "${name//\//_}#$seed" "$seconds" "$OUTPUT/seed_$seed/$name/config.json" env OUTPUT="$OUTPUT/seed_$seed" SEED="$seed" \
        ACTOR_MODEL="$OUTPUT/sft" NAME="$name" "$@" bash "$SCRIPTS/$script"
}

comparison() { # of the models $4 ... of seed $1 on pairs $3, called $2
    local folder=$OUTPUT/seed_$1 name=$2 pairs=$3 found=()
    shift 3
    for model in "$@"; do found+=("$(basename "$model")=$folder/$model"); done
    piece "$name#${folder##*_}" 60 "$folder/evaluation/$name/evaluation.json" "$PYTHON" step2_reward/evaluate.py \
        --reward_model "${found[@]}" --data "$pairs" --output_dir "$folder/evaluation/$name"
}

pipeline() {
    local seed name
    stage "data" 1
    piece data 40 "$OUTPUT/base/config.json" make_data
    stage "SFT" 1
    piece sft 40 "$OUTPUT/sft/config.json" train_sft
    for seed in $SEEDS; do
        if ! $PLANNING; then mkdir -p "$OUTPUT/seed_$seed" && ln -sfn "$(realpath "$DATA")" "$OUTPUT/seed_$seed/data"; fi
    done
    stage "models from ratings and pairs"
    for seed in $SEEDS; do
        model $seed ratings 60 tiny_ratings.sh
        model $seed reward/overall 150 tiny_overall.sh
        model $seed mapl 170 tiny_mapl.sh
        model $seed plain 90 tiny_mapl.sh PROMPT_PAIRS=false
        for name in $ATTRIBUTES; do model $seed ratings_$name 60 tiny_ratings.sh ATTRIBUTES=$name; done
    done
    stage "ArmoRM on the models of ratings"
    for seed in $SEEDS; do
        model $seed armorm 60 tiny_armorm.sh
        model $seed armorm_raw 60 tiny_armorm.sh VERBOSITY=none
    done
    stage "evaluation"
    for seed in $SEEDS; do
        comparison $seed overall_test "$DATA/overall_test.jsonl" armorm armorm_raw reward/overall
        comparison $seed instruction_pairs "$DATA/instructions_validation/instruction_pairs.jsonl" mapl plain
        comparison $seed preferences "$DATA/preferences_validation.jsonl" mapl plain
    done
}

run_pipeline
echo "done in $(clock $((SECONDS - STARTED))): $OUTPUT/seed_*/evaluation/*/evaluation.md, $OUTPUT/seed_*/*/evaluation.json"; exit
