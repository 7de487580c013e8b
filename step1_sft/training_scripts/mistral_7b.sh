#!/usr/bin/env bash
# Stage 1, preset mistral_7b: Mistral-7B learns UltraChat-200k. The paper takes a ready policy; these are the usual
# settings for such policies, a batch of 128 conversations on 8 GPUs.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/mistral_7b}
default_ranks 8
ZERO_STAGE=${ZERO_STAGE:-3}
EPOCHS=${EPOCHS:-1}
BATCH_SIZE=${BATCH_SIZE:-4}
GRADIENT_ACCUMULATION=${GRADIENT_ACCUMULATION:-4}
LEARNING_RATE=${LEARNING_RATE:-2e-5}
MAX_LENGTH=${MAX_LENGTH:-2048}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps

launch step1_sft/main.py "$OUTPUT/logs/sft.log" \
    --model_name_or_path "$BASE_MODEL" \
    --tokenizer "$TOKENIZER" \
    --data "$SFT_DATA" --overlong drop \
    --validation_data "$SFT_VALIDATION" \
    --zero_stage $ZERO_STAGE --dtype bf16 --gradient_checkpointing \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --gradient_accumulation_steps $GRADIENT_ACCUMULATION \
    --learning_rate $LEARNING_RATE --warmup_ratio 0.1 \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    ${STEP1_FLAGS:-} \
    --output_dir "$OUTPUT/sft"; exit
