#!/usr/bin/env bash
# Stage 3, preset hh: one policy. Every method starts from the same policy and critics and sees the same prompts.
#
#   bash step3_gapo/training_scripts/hh_policy.sh gapo_p1
source "$(dirname "${BASH_SOURCE[0]}")/method_flags.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch.sh"

OUTPUT=${OUTPUT:-output/hh}
RANKS=1
ZERO_STAGE=0
STEPS=30
PROMPT_BATCH_SIZE=64
TRAIN_BATCH_SIZE=64
ACTOR_LEARNING_RATE=7e-4
CRITIC_LEARNING_RATE=5e-4
KL_COEFF=0.1
CLIP_RANGE=0.2
MAX_PROMPT_LENGTH=$((${MAX_LENGTH:-192} - ${MAX_NEW_TOKENS:-64}))
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-64}
SEED=42

launch step3_gapo/main.py "$OUTPUT/logs/$RUN.log" \
    $METHOD_FLAGS \
    --actor_model "$OUTPUT/sft" \
    --reward_model helpfulness="$OUTPUT/reward/helpfulness" \
    --cost_model harmlessness="$OUTPUT/cost/harmlessness" \
    --data "$OUTPUT/data/train/helpful.jsonl,$OUTPUT/data/train/harmless.jsonl,$OUTPUT/data/train/safety.jsonl" \
    --overlong drop \
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
