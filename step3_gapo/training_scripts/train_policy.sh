# Sourced by <preset>_policy.sh, whose variables it reads: `train_policy RUN` makes the policy a run's name stands for
# (see run_names.sh).

source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch.sh"
source step3_gapo/training_scripts/run_names.sh

make_soup() { # of run $1
    local run experts
    run=$(run_of "$1")
    read -ra experts <<< "$(experts_of "$1")"
    launch eval/soup.py "$OUTPUT/logs/$1.log" \
        --expert helpfulness="$OUTPUT/policies/${experts[0]}" harmlessness="$OUTPUT/policies/${experts[1]}" \
        --weight $(preference "${run#rewarded_soup_}") \
        --output_dir "$OUTPUT/policies/$1"
}

train_policy() {
    local name=$1 flags scaled seed
    check_run "$name"
    if [[ $name == rewarded_soup_* ]]; then
        RANKS=1 make_soup "$name"
        return
    fi
    flags=$(method_flags "$(run_of "$name")")
    scaled=$(condition_flags "$(condition_of "$name")")
    seed=$(seed_of "$name") seed=${seed#\#}
    launch step3_gapo/main.py "$OUTPUT/logs/$name.log" \
        $flags $scaled \
        --actor_model "$OUTPUT/sft" \
        --reward_model helpfulness="$OUTPUT/reward/helpfulness" \
        --cost_model harmlessness="$OUTPUT/cost/harmlessness" \
        --data "$DATA" --overlong drop \
        --zero_stage $ZERO_STAGE \
        --num_train_epochs $EPOCHS \
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
        --seed "${seed:-$SEED}" \
        --checkpoint_interval $CHECKPOINT_INTERVAL \
        --output_dir "$OUTPUT/policies/$name"
}
