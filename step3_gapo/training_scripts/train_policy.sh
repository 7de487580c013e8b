# Sourced by <preset>_policy.sh, whose variables it reads: `train_policy RUN` makes the policy a run's name stands for
# (see presets/methods.txt). From anywhere: OBJECTIVES and the score models (see utils/launch/objectives.sh), ACTOR_MODEL,
# LORA_DIM, TASKS=FILE.json and JUDGES="NAME=..." of runs with tasks, WARM_START=RUN from which these start in place of
# ACTOR_MODEL, and STEP3_FLAGS, which holds any further flags and comes last, so that it counts.

source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"
source utils/launch/objectives.sh
source utils/launch/methods.sh
read_methods

make_soup() { # of run $1, by the flags $2
    local expert experts=()
    for expert in $(experts_of "$1"); do experts+=("$expert"); done
    if $DRY_RUN; then echo "[$1] would be averaged from ${experts[*]#*=}"; return; fi
    launch eval/soup.py "$OUTPUT/logs/$1.log" \
        --expert "${experts[@]/=/=$OUTPUT/policies/}" \
        $2 \
        --output_dir "$OUTPUT/policies/$1"
}

prompts_at_once() { # of run $1 with flags $2: PROMPT_BATCH_SIZE counts responses, so that all runs learn from as many
    local responses=1 word before=
    for word in $2; do
        if [ "$before" = --responses_per_prompt ]; then responses=$word; fi
        if [[ $word == --responses_per_prompt=* ]]; then responses=${word#*=}; fi
        before=$word
    done
    if ! [[ $responses =~ ^[1-9][0-9]{0,5}$ ]] || ((PROMPT_BATCH_SIZE % responses)); then
        echo "error: $1: PROMPT_BATCH_SIZE=$PROMPT_BATCH_SIZE responses are not divided by $responses a prompt" >&2
        return 2
    fi
    echo $((PROMPT_BATCH_SIZE / responses))
}

start_of() { # run $1; in a dry run what it would be trained from stands in for a policy that is still to be made
    local start
    start=$(warm_start_of "$1")
    if [ -n "$start" ] && $DRY_RUN && ! [ -f "$OUTPUT/policies/$start/config.json" ]; then
        echo "$OUTPUT/policies/$start is not there yet: the policy that it would be trained from stands in for it" >&2
        start=
    fi
    if [ -n "$start" ]; then echo "$OUTPUT/policies/$start"; else echo "${ACTOR_MODEL:-$OUTPUT/sft}"; fi
}

train_policy() {
    local name=$1 flags scaled maker seed prompts memory=${LORA_DIM:+--lora_dim $LORA_DIM}
    settle_objectives
    check_run "$name"
    flags=$(run_flags "$name") maker=$(maker_of "$name")
    scaled=$(condition_flags "$(condition_of "$name")" "$(stage_of "$name")")
    case $maker in
        eval/soup) RANKS=1 NNODES=1 HOSTFILE= make_soup "$name" "$flags"; return ;;
        step3_gapo) ;;
        *) echo "error: $name is made by $maker (see presets/methods.txt)" >&2; return 2 ;;
    esac
    objective_flags
    prompts=$(prompts_at_once "$name" "$flags $scaled ${STEP3_FLAGS:-}") || return 2
    seed=$(seed_of "$name") seed=${seed#\#}
    settle_switches GRADIENT_CHECKPOINTING
    if $GRADIENT_CHECKPOINTING; then memory+=" --gradient_checkpointing"; fi
    launch step3_gapo/main.py "$OUTPUT/logs/$name.log" \
        --actor_model "$(start_of "$name")" \
        "${OBJECTIVE_FLAGS[@]}" \
        --data "$DATA" --overlong drop \
        --zero_stage $ZERO_STAGE --dtype ${DTYPE:-fp32} $memory \
        --num_train_epochs $EPOCHS ${STEPS:+--max_steps $STEPS} \
        --per_device_prompt_batch_size $prompts \
        --generation_batches ${GENERATION_BATCHES:-1} \
        --per_device_train_batch_size $TRAIN_BATCH_SIZE \
        --gradient_accumulation_steps ${GRADIENT_ACCUMULATION:-1} \
        --logits_chunk_size $LOGITS_CHUNK_SIZE \
        --temperature ${TEMPERATURE:-1.0} \
        --max_prompt_length $MAX_PROMPT_LENGTH \
        --max_new_tokens $MAX_NEW_TOKENS \
        --actor_learning_rate $ACTOR_LEARNING_RATE \
        --critic_learning_rate $CRITIC_LEARNING_RATE \
        --kl_coeff $KL_COEFF \
        --clip_range_ratio $CLIP_RANGE \
        ${WARMUP:---num_warmup_steps 3} \
        --seed "${seed:-$SEED}" \
        --checkpoint_interval $CHECKPOINT_INTERVAL \
        $flags $scaled ${STEP3_FLAGS:-} \
        --output_dir "$OUTPUT/policies/$name"
}
