# Sourced by <preset>_policy.sh, whose variables it reads: `train_policy RUN` makes the policy a run's name stands for,
# the objectives being helpfulness and harmlessness.
#
#   ppo_helpfulness  ppo_harmlessness   one objective; the other is scored and logged
#   safe_rlhf  fast_rl                  weights that follow the scores: PPO-Lagrangian, mirror descent
#   morlhf_W  p_gapo_W                  weight or preference W for helpfulness, 1 - W for harmlessness
#   mgda  gapo_p1  gapo_p2
#   upgrad  dualproj  cagrad  pcgrad  imtl_g  aligned_mtl  fairgrad    torchjd's weightings
#   rewarded_soup_W                     no training: the weights of the two ppo policies, averaged
#
# RUN@imbalanced multiplies the cost that is trained on by IMBALANCE (4); RUN#43 is the same run with seed 43.
#
# GRADIENT_SCOPE=full compares the gradients of all parameters in place of the last layer's; so does a name with _full
# at its end (gapo_p1_full), for having both in one report. A finished run is not done again for another scope.

source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch.sh"

preference() { # helpfulness=$1 and the rest
    echo "helpfulness=$1 harmlessness=$(awk -v w="$1" 'BEGIN { print 1 - w }')"
}

method_flags() { # of run $1, without condition and seed
    local scope=${GRADIENT_SCOPE:-last_layer} run=$1
    case $run in
        ppo_*_full | morlhf_*_full | safe_rlhf_full | fast_rl_full) ;; # they compare no gradients
        *_full) scope=full run=${run%_full} ;;
    esac
    local compared="--gradient_scope $scope"
    case $run in
        ppo_helpfulness) echo "--algorithm ppo --monitor harmlessness" ;;
        ppo_harmlessness) echo "--algorithm ppo --monitor helpfulness" ;;
        safe_rlhf) echo "--algorithm ppo_lagrangian --log_gradients --lambda_learning_rate ${LAMBDA_LEARNING_RATE:-0.01}" ;;
        fast_rl) echo "--algorithm fast_rl --log_gradients" ;;
        morlhf_*) echo "--algorithm morlhf --log_gradients --preference $(preference "${run#morlhf_}")" ;;
        mgda) echo "--algorithm mgda $compared" ;;
        gapo_p1) echo "--algorithm gapo --rescale_power 1 $compared" ;;
        # Dividing by squared norms makes steps of very uneven length; fixing the sum of the coefficients evens them out.
        gapo_p2) echo "--algorithm gapo --rescale_power 2 --normalize_coefficients $compared" ;;
        p_gapo_*) echo "--algorithm p_gapo --preference $(preference "${run#p_gapo_}") $compared" ;;
        upgrad | dualproj | cagrad | pcgrad | imtl_g | aligned_mtl | fairgrad) echo "--algorithm $run $compared" ;;
        *) echo "error: no method is known for the run \"$1\" (there are ppo_helpfulness, ppo_harmlessness, safe_rlhf, fast_rl," \
                "morlhf_W, mgda, gapo_p1, gapo_p2, p_gapo_W, upgrad, dualproj, cagrad, pcgrad, imtl_g, aligned_mtl, fairgrad," \
                "rewarded_soup_W, each also with @imbalanced and #SEED)" >&2; return 2 ;;
    esac
}

condition_flags() { # of condition $1
    case $1 in
        "") ;;
        @imbalanced) echo "--score_scale harmlessness=${IMBALANCE:-4}" ;;
        *) echo "error: no condition is known as \"${1#@}\" (there is imbalanced)" >&2; return 2 ;;
    esac
}

make_soup() { # of run $1, with the condition and seed $2 of its experts; helpfulness has nothing to scale
    local weight=${1#rewarded_soup_} seed=
    if [[ $2 == *"#"* ]]; then seed="#${2##*#}"; fi
    launch eval/soup.py "$OUTPUT/logs/$1$2.log" \
        --expert helpfulness="$OUTPUT/policies/ppo_helpfulness$seed" harmlessness="$OUTPUT/policies/ppo_harmlessness$2" \
        --weight $(preference "$weight") \
        --output_dir "$OUTPUT/policies/$1$2"
}

train_policy() {
    local name=$1 run=${1%%[@#]*} condition= seed=$SEED flags scaled
    if [[ $name == *@* ]]; then condition=${name#"$run"} condition=${condition%%#*}; fi
    if [[ $name == *"#"* ]]; then seed=${name##*#}; fi
    if [[ $run == rewarded_soup_* ]]; then
        RANKS=1 make_soup "$run" "${name#"$run"}"
        return
    fi
    flags=$(method_flags "$run")
    scaled=$(condition_flags "$condition")
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
        --seed $seed \
        --checkpoint_interval $CHECKPOINT_INTERVAL \
        --output_dir "$OUTPUT/policies/$name"
}
