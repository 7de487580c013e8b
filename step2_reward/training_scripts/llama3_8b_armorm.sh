#!/usr/bin/env bash
# Stage 2, ArmoRM as published: backbone, ratings and pairs of the released model (RLHFlow/ArmoRM-Llama3-8B-v0.1), its
# gate's size, temperature and steps. On 8 GPUs each reads whole dialogues with the whole backbone (ZERO_STAGE=3 shares it).
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/llama3_8b}
default_ranks 8
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-32}
BATCH_SIZE=${BATCH_SIZE:-128}
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-8} # dialogues at once
LEARNING_RATE=${LEARNING_RATE:-1e-3}
MAX_LENGTH=${MAX_LENGTH:-4096}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-500} # optimizer steps of the gate

launch step2_reward/armorm/main.py "$OUTPUT/logs/armorm.log" \
    --model_name_or_path "${BACKBONE:-sfairXC/FsfairX-LLaMA3-RM-v0.1}" \
    --ratings "${RATINGS:-RLHFlow/ArmoRM-Multi-Objective-Data-v0.1}" \
    --verbosity_attribute "${VERBOSITY:-helpsteer-verbosity}" \
    --data "${PREFERENCE_DATA:-RLHFlow/pair_data_v2_80K_wsafety}" --overlong drop --unfit drop \
    --validation_fraction 0.2 \
    --zero_stage $ZERO_STAGE --dtype bf16 \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE --per_device_eval_batch_size $EVAL_BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    ${STATES:+--states_dir "$STATES"} \
    ${STEP2_FLAGS:-} \
    --output_dir "$OUTPUT/armorm"; exit
