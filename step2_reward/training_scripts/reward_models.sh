#!/usr/bin/env bash
# Reward models with several attributes on SafeRLHF-mini: what docs/reward_models.md reports.
#
#   bash step2_reward/training_scripts/reward_models.sh      about half an hour a seed on 2 cores
#   SEEDS="42 43 44" OUTPUT=output/reward_models             the seeds, and where everything goes
#
# Once: data (ratings, overall preferences, instructions), a tokenizer that knows them, an SFT model. Then for every seed s,
# in OUTPUT/seed_s:
#
#   ratings, ratings_NAME      one model of all attributes, and one of each
#   armorm, armorm_raw         on the first of these, frozen: attributes and gate, with verbosity taken out and without
#   reward/overall    Bradley-Terry on the overall preference alone
#   mapl, plain       pairs with instructions, with prompt pairs beside them and without
#
# and evaluations of these on held-out pairs in OUTPUT/seed_s/evaluation. What is there is not made again.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

export OUTPUT=${OUTPUT:-output/reward_models}
SEEDS=${SEEDS:-42 43 44}
ATTRIBUTES="helpfulness harmlessness conciseness clarity verbosity"
SCRIPTS=step2_reward/training_scripts
DATA=$OUTPUT/data

made() { [ -e "$1" ] && ! [ -e "$(dirname "$1")/unfinished" ]; } # whether file $1 is there, of a run that is finished
step() { # what makes file $1, said as it begins
    if made "$1"; then return; fi
    echo "[$(date +%H:%M:%S)] ${1#"$OUTPUT"/}"
    shift
    "$@"
}

# Kinds of instructions that some of the benchmark's responses meet and some break.
KINDS="at_least_words at_most_words about_words at_least_sentences at_most_sentences short_sentences contains_word
    repeats_word lacks_word opens_with closes_with no_first_person no_commas"

make_data() {
    local part
    "$PYTHON" -m utils.safe_rlhf_mini --output_dir "$DATA" --seed 0 --num_validation 1500 \
        --reward_models --num_held_out_ratings 3000
    for part in train:0.2 validation:1.0; do
        "$PYTHON" utils/make_prompt_pairs.py --data "$DATA/preferences_${part%:*}.jsonl:${part#*:}" --kinds $KINDS \
            --output_dir "$DATA/instructions_${part%:*}"
    done
    "$PYTHON" utils/make_base.py --sft_data "$DATA/sft_train.jsonl" \
        --preference_data "$DATA/preferences_train.jsonl,$DATA/instructions_train/instruction_pairs.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" \
        --vocab_size 1024 --hidden_size 64 --num_layers 3 --num_heads 4 --num_kv_heads 2 --intermediate_size 160
}

evaluate() { # models $2 ... on pairs $1, in the folder named like the pairs
    local pairs=$1 name
    shift
    name=$(basename "$pairs" .jsonl)
    "$PYTHON" step2_reward/evaluate.py --reward_model "$@" --data "$pairs" --output_dir "$OUTPUT/evaluation/$name"
}

step "$OUTPUT/base/config.json" make_data
step "$OUTPUT/sft/config.json" bash step1_sft/training_scripts/tiny.sh

ALL=$OUTPUT
for seed in $SEEDS; do
    export ACTOR_MODEL=$ALL/sft SEED=$seed OUTPUT=$ALL/seed_$seed
    mkdir -p "$OUTPUT"
    ln -sfn "$(realpath "$DATA")" "$OUTPUT/data"
    NAME=ratings step "$OUTPUT/ratings/config.json" bash $SCRIPTS/tiny_ratings.sh
    for name in armorm:verbosity armorm_raw:none; do
        NAME=${name%:*} VERBOSITY=${name#*:} STATES=$OUTPUT/states step "$OUTPUT/${name%:*}/config.json" \
            bash $SCRIPTS/tiny_armorm.sh
    done
    step "$OUTPUT/reward/overall/config.json" bash $SCRIPTS/tiny_overall.sh
    for name in $ATTRIBUTES; do
        NAME=ratings_$name ATTRIBUTES=$name step "$OUTPUT/ratings_$name/config.json" bash $SCRIPTS/tiny_ratings.sh
    done
    NAME=mapl step "$OUTPUT/mapl/config.json" bash $SCRIPTS/tiny_mapl.sh
    NAME=plain PROMPT_PAIRS=false step "$OUTPUT/plain/config.json" bash $SCRIPTS/tiny_mapl.sh
    step "$OUTPUT/evaluation/overall_test/evaluation.json" evaluate "$DATA/overall_test.jsonl" \
        armorm="$OUTPUT/armorm" armorm_raw="$OUTPUT/armorm_raw" bradley_terry="$OUTPUT/reward/overall"
    for pairs in "$DATA/instructions_validation/instruction_pairs.jsonl" "$DATA/preferences_validation.jsonl"; do
        step "$OUTPUT/evaluation/$(basename "$pairs" .jsonl)/evaluation.json" evaluate "$pairs" \
            mapl="$OUTPUT/mapl" plain="$OUTPUT/plain"
    done
done; exit
