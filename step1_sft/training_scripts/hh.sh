#!/usr/bin/env bash
# Stage 1, preset hh: a randomly initialized decoder learns from human dialogues and instructions.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/hh}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-3}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-3e-3}
MAX_LENGTH=${MAX_LENGTH:-192}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps

DATA=$OUTPUT/data/train/helpful.jsonl,$OUTPUT/data/train/safety.jsonl
VALIDATION_DATA=$OUTPUT/data/validation/helpful.jsonl,$OUTPUT/data/validation/safety.jsonl
if [ -f "$OUTPUT/data/train/instructions.jsonl" ]; then
    DATA+=,$OUTPUT/data/train/instructions.jsonl
    VALIDATION_DATA+=,$OUTPUT/data/validation/instructions.jsonl
fi

launch step1_sft/main.py "$OUTPUT/logs/sft.log" \
    --model_name_or_path "$OUTPUT/base" \
    --data "$DATA" --overlong drop \
    --validation_data "$VALIDATION_DATA" \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/sft"; exit
