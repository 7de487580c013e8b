#!/usr/bin/env bash
# Stage 2, MAPL: a reward model of pairs, of pairs whose prompts hold instructions that a program can check, and of prompt
# pairs, on a 7B decoder. First, for TRAIN and VALIDATION preferences (files or hub names):
#
#   python utils/make_prompt_pairs.py --data TRAIN --output_dir output/mistral_7b/instructions_train
#   python utils/make_prompt_pairs.py --data VALIDATION --output_dir output/mistral_7b/instructions_validation
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/mistral_7b}
default_ranks 8
ZERO_STAGE=${ZERO_STAGE:-3}
EPOCHS=${EPOCHS:-1}
BATCH_SIZE=${BATCH_SIZE:-8}
LEARNING_RATE=${LEARNING_RATE:-2e-6}
MAX_LENGTH=${MAX_LENGTH:-1024}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps
WEIGHT=${WEIGHT:-1} # of a prompt pair; an ordinary pair weighs 1
TRAIN=${PREFERENCE_DATA:-PKU-Alignment/PKU-SafeRLHF@train}
VALIDATION=${PREFERENCE_VALIDATION:-PKU-Alignment/PKU-SafeRLHF@test}

launch step2_reward/main.py "$OUTPUT/logs/mapl.log" \
    --objective mapl --kind reward \
    --model_name_or_path "${ACTOR_MODEL:-HuggingFaceH4/mistral-7b-sft-beta}" \
    --data "$TRAIN,$OUTPUT/instructions_train/instruction_pairs.jsonl" --overlong drop \
    --validation_data "$VALIDATION,$OUTPUT/instructions_validation/instruction_pairs.jsonl" \
    --prompt_pairs "$OUTPUT/instructions_train/prompt_pairs.jsonl" --prompt_pair_weight $WEIGHT \
    --validation_prompt_pairs "$OUTPUT/instructions_validation/prompt_pairs.jsonl" \
    --zero_stage $ZERO_STAGE --dtype bf16 --gradient_checkpointing \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE --warmup_ratio 0.03 \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    ${STEP2_FLAGS:-} \
    --output_dir "$OUTPUT/mapl"; exit
