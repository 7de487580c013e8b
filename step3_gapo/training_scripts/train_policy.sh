# Sourced by <preset>_policy.sh, whose variables it reads: `train_policy RUN` trains the policy a run's name stands for,
# the objectives being helpfulness and harmlessness.
#
#   ppo_helpfulness  ppo_harmlessness   one objective; the other is scored and logged
#   morlhf_W  p_gapo_W                  weight or preference W for helpfulness, 1 - W for harmlessness
#   mgda  gapo_p1  gapo_p2
#   upgrad  dualproj  cagrad  pcgrad  imtl_g  aligned_mtl  fairgrad    torchjd's weightings
#
# GRADIENT_SCOPE=full compares the gradients of all parameters in place of the last layer's; so does a name with _full
# at its end (gapo_p1_full), for having both in one report. A finished run is not done again for another scope.

source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch.sh"

preference() { # helpfulness=$1 and the rest
    echo "helpfulness=$1 harmlessness=$(awk -v w="$1" 'BEGIN { print 1 - w }')"
}

method_flags() { # of run $1
    local scope=${GRADIENT_SCOPE:-last_layer} run=$1
    [[ $run == *_full && $run != ppo_* && $run != morlhf_* ]] && scope=full run=${run%_full}
    local compared="--gradient_scope $scope"
    case $run in
        ppo_helpfulness) echo "--algorithm ppo --monitor harmlessness" ;;
        ppo_harmlessness) echo "--algorithm ppo --monitor helpfulness" ;;
        morlhf_*) echo "--algorithm morlhf --log_gradients --preference $(preference "${run#morlhf_}")" ;;
        mgda) echo "--algorithm mgda $compared" ;;
        gapo_p1) echo "--algorithm gapo --rescale_power 1 $compared" ;;
        # Dividing by squared norms makes steps of very uneven length; fixing the sum of the coefficients evens them out.
        gapo_p2) echo "--algorithm gapo --rescale_power 2 --normalize_coefficients $compared" ;;
        p_gapo_*) echo "--algorithm p_gapo --preference $(preference "${run#p_gapo_}") $compared" ;;
        upgrad | dualproj | cagrad | pcgrad | imtl_g | aligned_mtl | fairgrad) echo "--algorithm $run $compared" ;;
        *) echo "error: no method is known for the run \"$1\" (there are ppo_helpfulness, ppo_harmlessness, morlhf_W, mgda," \
                "gapo_p1, gapo_p2, p_gapo_W, upgrad, dualproj, cagrad, pcgrad, imtl_g, aligned_mtl, fairgrad)" >&2; return 2 ;;
    esac
}

train_policy() {
    local run=$1 flags
    flags=$(method_flags "$run")
    launch step3_gapo/main.py "$OUTPUT/logs/$run.log" \
        $flags \
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
        --seed $SEED \
        --output_dir "$OUTPUT/policies/$run"
}
