#!/usr/bin/env bash
# Stage 2 on SafeRLHF-mini, MAPL: a reward model of pairs whose prompts hold instructions that a program can check, and of
# prompt pairs beside them (PROMPT_PAIRS=false: without). The data comes from
# step2_reward/training_scripts/reward_models.sh, which runs this, too.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/reward_models}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-2}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-1e-3}
MAX_LENGTH=${MAX_LENGTH:-384}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-100} # optimizer steps
NAME=${NAME:-mapl} # of the result
WEIGHT=${WEIGHT:-1} # of a prompt pair; an ordinary pair weighs 1
PROMPT_PAIRS=${PROMPT_PAIRS:-true}
settle_switches PROMPT_PAIRS
DATA=$OUTPUT/data
FLAGS=(--validation_data "$DATA/preferences_validation.jsonl,$DATA/instructions_validation/instruction_pairs.jsonl")
if $PROMPT_PAIRS; then
    FLAGS+=(--prompt_pairs "$DATA/instructions_train/prompt_pairs.jsonl" --prompt_pair_weight $WEIGHT
        --validation_prompt_pairs "$DATA/instructions_validation/prompt_pairs.jsonl")
fi

launch step2_reward/main.py "$OUTPUT/logs/$NAME.log" \
    --objective $NAME --kind reward \
    --model_name_or_path "${ACTOR_MODEL:-$OUTPUT/sft}" \
    --data "$DATA/preferences_train.jsonl:${FRACTION:-0.25},$DATA/instructions_train/instruction_pairs.jsonl" \
    "${FLAGS[@]}" --export last \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/$NAME"; exit
