#!/usr/bin/env bash
# Stage 2, preset hh: the cost model of harmlessness, from labelled safety pairs and HH-RLHF's harmless pairs.
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

launch step2_reward/main.py "$OUTPUT/logs/cost_harmlessness.log" \
    --objective harmlessness --kind cost \
    --model_name_or_path "${ACTOR_MODEL:-$OUTPUT/sft}" \
    --data "$OUTPUT/data/train/safety.jsonl,$OUTPUT/data/train/harmless.jsonl" --overlong drop \
    --validation_data "$OUTPUT/data/validation/safety.jsonl,$OUTPUT/data/validation/harmless.jsonl" \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/cost/harmlessness"; exit
