#!/usr/bin/env bash
# Stage 1, preset smoke: preset tiny, shorter, in smaller batches.
export OUTPUT=${OUTPUT:-output/smoke} EPOCHS=${EPOCHS:-2}
export CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-25} BATCH_SIZE=${BATCH_SIZE:-32} LEARNING_RATE=${LEARNING_RATE:-4e-3}
exec bash "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
