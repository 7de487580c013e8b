#!/usr/bin/env bash
# Stage 2, preset hh: the reward model of helpfulness, from HH-RLHF's chosen and rejected answers.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/hh}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-1}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-1e-3}
MAX_LENGTH=${MAX_LENGTH:-192}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps

launch step2_reward/main.py "$OUTPUT/logs/reward_helpfulness.log" \
    --objective helpfulness --kind reward \
    --model_name_or_path "${ACTOR_MODEL:-$OUTPUT/sft}" \
    --data "$OUTPUT/data/train/helpful.jsonl" --overlong drop \
    --validation_data "$OUTPUT/data/validation/helpful.jsonl" \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/reward/helpfulness"; exit
