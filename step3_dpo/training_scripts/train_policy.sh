# Sourced by <preset>_policy.sh, whose variables it reads: `train_policy RUN` makes the policy a run's name stands for
# (see presets/methods.txt). From anywhere: OBJECTIVES (see utils/launch/objectives.sh), ACTOR_MODEL, LORA_DIM,
# PAIRS_NAME="DATA:LABEL" and VALIDATION_PAIRS_NAME, an objective's own pairs in place of PREFERENCE_DATA (by "better" for
# a reward, "safer" for a cost), and STEP3_FLAGS, which holds any further flags and comes last, so that it counts.

source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"
source utils/launch/objectives.sh
source utils/launch/methods.sh
read_methods

pair_flags() { # leaves in PAIR_FLAGS the pairs of every objective
    local objective name label own validation variable pairs=() held_out=()
    for objective in $OBJECTIVES; do
        name=${objective#*/} name=${name%%=*} own=PAIRS_$name validation=VALIDATION_PAIRS_$name
        case $objective in
            reward/*) label=better ;;
            cost/*) label=safer ;;
            *) label= ;;
        esac
        for variable in "$own" "$validation"; do
            if [ -z "$label${!variable:-}" ]; then
                echo "error: OBJECTIVES: $objective: a function orders no pairs; give it some in $variable=DATA:LABEL" >&2
                return 2
            fi
        done
        pairs+=("$name=${!own:-$PREFERENCE_DATA:$label}")
        held_out+=("$name=${!validation:-$PREFERENCE_VALIDATION:$label}")
    done
    PAIR_FLAGS=(--objective "${pairs[@]}" --validation_objective "${held_out[@]}")
}

planned_flags() { # flags $1; in a dry run the policy that all start from stands in for margins that are still to be made
    local word words=()
    for word in $1; do
        if $DRY_RUN && [[ $word == *="$OUTPUT"/policies/* ]] && ! [ -f "${word#*=}/config.json" ]; then
            echo "${word#*=} is not there yet: the policy that it would be trained from stands in for it" >&2
            word=${word%%=*}=${ACTOR_MODEL:-$OUTPUT/sft}
        fi
        words+=("$word")
    done
    echo "${words[*]}"
}

train_policy() {
    local name=$1 flags changed maker seed memory=${LORA_DIM:+--lora_dim $LORA_DIM}
    settle_objectives
    check_run "$name"
    flags=$(run_flags "$name") maker=$(maker_of "$name")
    changed=$(condition_flags "$(condition_of "$name")" step3_dpo)
    if [ "$maker" != step3_dpo ]; then
        echo "error: $name is made by $maker (see presets/methods.txt)" >&2
        return 2
    fi
    pair_flags
    seed=$(seed_of "$name") seed=${seed#\#}
    settle_switches GRADIENT_CHECKPOINTING
    if $GRADIENT_CHECKPOINTING; then memory+=" --gradient_checkpointing"; fi
    launch step3_dpo/main.py "$OUTPUT/logs/$name.log" \
        --actor_model "${ACTOR_MODEL:-$OUTPUT/sft}" \
        "${PAIR_FLAGS[@]}" --overlong drop \
        --zero_stage $ZERO_STAGE --dtype ${DTYPE:-fp32} $memory \
        --beta $BETA \
        --max_length $MAX_LENGTH \
        --num_train_epochs $EPOCHS --export last \
        --per_device_train_batch_size $BATCH_SIZE \
        --gradient_accumulation_steps ${GRADIENT_ACCUMULATION:-1} \
        --logits_chunk_size $LOGITS_CHUNK_SIZE \
        --frozen_dir "$OUTPUT/frozen" \
        --learning_rate $LEARNING_RATE \
        --seed "${seed:-$SEED}" \
        --checkpoint_interval $CHECKPOINT_INTERVAL \
        $(planned_flags "$flags") $changed ${STEP3_FLAGS:-} \
        --output_dir "$OUTPUT/policies/$name"
}
