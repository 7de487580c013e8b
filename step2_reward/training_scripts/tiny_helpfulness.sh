#!/usr/bin/env bash
# Stage 2, preset tiny: the reward model of helpfulness, from the better answer of every pair.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/tiny}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-2}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-1e-3}
MAX_LENGTH=${MAX_LENGTH:-256}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-50} # optimizer steps

launch step2_reward/main.py "$OUTPUT/logs/reward_helpfulness.log" \
    --objective helpfulness --kind reward \
    --model_name_or_path "${ACTOR_MODEL:-$OUTPUT/sft}" \
    --data "$OUTPUT/data/preferences_train.jsonl" \
    --validation_data "$OUTPUT/data/preferences_validation.jsonl" \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/reward/helpfulness"; exit
