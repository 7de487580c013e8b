# Sourced by <preset>_policy.sh, whose variables it reads: `train_policy [NAME]` makes the steerable policy
# $OUTPUT/policies/NAME (dpa). From anywhere: OBJECTIVES and the score models (see utils/launch/objectives.sh), in the
# order of a direction's weights, ACTOR_MODEL, and STEP3_FLAGS, which holds any further flags and comes last, so that it
# counts.

source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"
source utils/launch/objectives.sh

train_policy() {
    local name=${1:-dpa} memory=
    settle_objectives
    objective_flags
    settle_switches GRADIENT_CHECKPOINTING
    if $GRADIENT_CHECKPOINTING; then memory=--gradient_checkpointing; fi
    launch step3_dpa/main.py "$OUTPUT/logs/$name.log" \
        --actor_model "${ACTOR_MODEL:-$OUTPUT/sft}" \
        "${OBJECTIVE_FLAGS[@]}" \
        --data "$DATA" --overlong drop \
        --min_angle $MIN_ANGLE --max_angle $MAX_ANGLE --direction_draw ${DIRECTION_DRAW:-uniform} \
        ${MESSAGE:+--message "$MESSAGE"} \
        --iterations $ITERATIONS \
        ${ITERATION_PROMPTS:+--prompts_per_iteration $ITERATION_PROMPTS} \
        --samples_per_direction $SAMPLES \
        --per_device_prompt_batch_size $PROMPT_BATCH_SIZE \
        --max_prompt_length $MAX_PROMPT_LENGTH \
        --max_new_tokens $MAX_NEW_TOKENS \
        --zero_stage $ZERO_STAGE --dtype ${DTYPE:-fp32} $memory \
        --num_train_epochs $EPOCHS --export last \
        --per_device_train_batch_size $BATCH_SIZE \
        --gradient_accumulation_steps ${GRADIENT_ACCUMULATION:-1} \
        --learning_rate $LEARNING_RATE \
        --seed $SEED \
        --checkpoint_interval $CHECKPOINT_INTERVAL \
        ${STEP3_FLAGS:-} \
        --output_dir "$OUTPUT/policies/$name"
}
