#!/usr/bin/env bash
# Stage 2 on SafeRLHF-mini, ArmoRM: attributes from ratings on a frozen score model, and a gate over them from pairs. The
# data and the backbone come from step2_reward/training_scripts/reward_models.sh, which runs this, too.
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/launch/launch.sh"

OUTPUT=${OUTPUT:-output/reward_models}
default_ranks 1
ZERO_STAGE=${ZERO_STAGE:-0}
EPOCHS=${EPOCHS:-40}
BATCH_SIZE=${BATCH_SIZE:-256}
LEARNING_RATE=${LEARNING_RATE:-1e-3}
MAX_LENGTH=${MAX_LENGTH:-384}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-200} # optimizer steps of the gate
NAME=${NAME:-armorm} # of the result
BACKBONE=${BACKBONE:-$OUTPUT/ratings}
VERBOSITY=${VERBOSITY:-verbosity} # taken out of the other attributes; none: nothing is

launch step2_reward/armorm/main.py "$OUTPUT/logs/$NAME.log" \
    --model_name_or_path "$BACKBONE" \
    --ratings "$OUTPUT/data/ratings_train.jsonl" --verbosity_attribute "$VERBOSITY" \
    --data "$OUTPUT/data/overall_train.jsonl" --export last \
    --validation_data "$OUTPUT/data/overall_validation.jsonl" \
    --gating_hidden_dim ${GATE_WIDTH:-64} --gating_n_hidden ${GATE_LAYERS:-2} --gating_temperature ${GATE_TEMPERATURE:-3} \
    --zero_stage $ZERO_STAGE \
    --max_length $MAX_LENGTH \
    --num_train_epochs $EPOCHS \
    --per_device_train_batch_size $BATCH_SIZE \
    --learning_rate $LEARNING_RATE \
    --seed $SEED \
    --checkpoint_interval $CHECKPOINT_INTERVAL \
    ${STATES:+--states_dir "$STATES"} \
    --output_dir "$OUTPUT/$NAME"; exit
