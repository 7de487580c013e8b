#!/usr/bin/env bash
# Stage 3, preset smoke: one policy, on two ranks with ZeRO-2. Every method starts from the same policy and critics and sees the same prompts.
#
#   bash step3_gapo/training_scripts/smoke_policy.sh gapo_p1
source "$(dirname "${BASH_SOURCE[0]}")/method_flags.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch.sh"

OUTPUT=${OUTPUT:-output/smoke}
RANKS=2
ZERO_STAGE=2
STEPS=24
PROMPT_BATCH_SIZE=64
TRAIN_BATCH_SIZE=32
ACTOR_LEARNING_RATE=7e-4
CRITIC_LEARNING_RATE=5e-4
KL_COEFF=0.1
CLIP_RANGE=0.2
MAX_PROMPT_LENGTH=96
MAX_NEW_TOKENS=96
SEED=42

launch step3_gapo/main.py "$OUTPUT/logs/$RUN.log" \
    $METHOD_FLAGS \
    --actor_model "$OUTPUT/sft" \
    --reward_model helpfulness="$OUTPUT/reward/helpfulness" \
    --cost_model harmlessness="$OUTPUT/cost/harmlessness" \
    --data "$OUTPUT/data/prompts_train.jsonl" \
    --zero_stage $ZERO_STAGE \
    --num_train_epochs 4 \
    --max_steps $STEPS \
    --per_device_prompt_batch_size $PROMPT_BATCH_SIZE \
    --per_device_train_batch_size $TRAIN_BATCH_SIZE \
    --max_prompt_length $MAX_PROMPT_LENGTH \
    --max_new_tokens $MAX_NEW_TOKENS \
    --actor_learning_rate $ACTOR_LEARNING_RATE \
    --critic_learning_rate $CRITIC_LEARNING_RATE \
    --kl_coeff $KL_COEFF \
    --clip_range_ratio $CLIP_RANGE \
    --num_warmup_steps 3 \
    --seed $SEED \
    --output_dir "$OUTPUT/policies/$RUN"
