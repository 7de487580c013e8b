#!/usr/bin/env bash
# Stage 2, preset smoke: the reward model of preset tiny, on less data, in smaller batches.
export OUTPUT=${OUTPUT:-output/smoke} EPOCHS=${EPOCHS:-1}
export CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-25} BATCH_SIZE=${BATCH_SIZE:-32}
exec bash "$(dirname "${BASH_SOURCE[0]}")/tiny_helpfulness.sh"
