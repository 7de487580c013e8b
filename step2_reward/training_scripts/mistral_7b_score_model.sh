# Sourced by mistral_7b_{helpfulness,harmlessness}.sh: `train_score_model OBJECTIVE KIND`, on the policy's decoder. The
# paper takes ready models; these are Safe RLHF's settings, a batch of 128 pairs on 8 GPUs.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/mistral_7b}
default_ranks 8
ZERO_STAGE=${ZERO_STAGE:-3}
EPOCHS=${EPOCHS:-2}
BATCH_SIZE=${BATCH_SIZE:-16}
LEARNING_RATE=${LEARNING_RATE:-2e-5}
MAX_LENGTH=${MAX_LENGTH:-512}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps

train_score_model() { # of objective $1, kind $2: reward or cost
    launch step2_reward/main.py "$OUTPUT/logs/$2_$1.log" \
        --objective "$1" --kind "$2" \
        --model_name_or_path "${ACTOR_MODEL:-$OUTPUT/sft}" \
        --data "$PREFERENCE_DATA" --overlong drop \
        --validation_data "$PREFERENCE_VALIDATION" \
        --zero_stage $ZERO_STAGE --dtype bf16 --gradient_checkpointing \
        --max_length $MAX_LENGTH \
        --num_train_epochs $EPOCHS \
        --per_device_train_batch_size $BATCH_SIZE \
        --learning_rate $LEARNING_RATE --warmup_ratio 0.03 --weight_decay 0.1 \
        --seed $SEED \
        --checkpoint_interval $CHECKPOINT_INTERVAL \
        ${STEP2_FLAGS:-} \
        --output_dir "$OUTPUT/$2/$1"
}
