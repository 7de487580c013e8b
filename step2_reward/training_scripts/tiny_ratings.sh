#!/usr/bin/env bash
# Stage 2 on SafeRLHF-mini: one score model with an output for every attribute that replies are rated on. The data comes
# from step2_reward/training_scripts/reward_models.sh, which runs this, too.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/reward_models}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-3}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-1e-3}
MAX_LENGTH=${MAX_LENGTH:-384}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-100} # optimizer steps
NAME=${NAME:-ratings} # of the result
ATTRIBUTES=${ATTRIBUTES:-} # NAME[:low:high] ...; without it, all that the data rates

launch step2_reward/main.py "$OUTPUT/logs/$NAME.log" \
    --kind ratings ${ATTRIBUTES:+--attributes $ATTRIBUTES} \
    --model_name_or_path "${ACTOR_MODEL:-$OUTPUT/sft}" \
    --data "$OUTPUT/data/ratings_train.jsonl" --export last \
    --validation_data "$OUTPUT/data/ratings_validation.jsonl" \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    --output_dir "$OUTPUT/$NAME"; exit
