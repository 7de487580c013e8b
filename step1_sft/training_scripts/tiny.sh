#!/usr/bin/env bash
# Stage 1, preset tiny: a randomly initialized decoder learns to answer like the SafeRLHF-mini demonstrations.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/tiny}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-6}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-3e-3}
MAX_LENGTH=${MAX_LENGTH:-256}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-50} # optimizer steps

launch step1_sft/main.py "$OUTPUT/logs/sft.log" \
    --model_name_or_path "$OUTPUT/base" \
    --data "$OUTPUT/data/sft_train.jsonl" \
    --validation_data "$OUTPUT/data/sft_validation.jsonl" \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/sft"; exit
