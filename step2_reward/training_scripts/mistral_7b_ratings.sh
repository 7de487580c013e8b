#!/usr/bin/env bash
# Stage 2: one score model with five outputs, from HelpSteer2's ratings, on a 7B decoder.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/mistral_7b}
default_ranks 8
ZERO_STAGE=${ZERO_STAGE:-3}
EPOCHS=${EPOCHS:-2}
BATCH_SIZE=${BATCH_SIZE:-16}
LEARNING_RATE=${LEARNING_RATE:-2e-6}
MAX_LENGTH=${MAX_LENGTH:-2048}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps

launch step2_reward/main.py "$OUTPUT/logs/ratings.log" \
    --kind ratings \
    --attributes helpfulness:0:4 correctness:0:4 coherence:0:4 complexity:0:4 verbosity:0:4 \
    --model_name_or_path "${ACTOR_MODEL:-HuggingFaceH4/mistral-7b-sft-beta}" \
    --data "${RATINGS:-nvidia/HelpSteer2@train}" --overlong drop --unfit drop \
    --validation_data "${RATINGS_VALIDATION:-nvidia/HelpSteer2@validation}" \
    --zero_stage $ZERO_STAGE --dtype bf16 --gradient_checkpointing \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE --warmup_ratio 0.03 --weight_decay 0.1 \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    ${STEP2_FLAGS:-} \
    --output_dir "$OUTPUT/ratings"; exit
