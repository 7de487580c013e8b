#!/usr/bin/env bash
# Stage 3 by rejection sampling, presets of SafeRLHF-mini: one policy that is steered by directions between both
# objectives, from all for the first to all for the second.
#
#   bash run_all.sh tiny, and then        bash step3_dpa/training_scripts/tiny_policy.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_policy.sh"

OUTPUT=${OUTPUT:-output/tiny}
default_ranks 1
DATA=$OUTPUT/data/prompts_train.jsonl
ZERO_STAGE=${ZERO_STAGE:-0}
MIN_ANGLE=${MIN_ANGLE:-0}
MAX_ANGLE=${MAX_ANGLE:-90}
DIRECTION_DRAW=${DIRECTION_DRAW:-even}
ITERATIONS=${ITERATIONS:-3}
ITERATION_PROMPTS=${ITERATION_PROMPTS:-} # all of them: a small model learns to read a direction in hundreds of steps
MESSAGE=${MESSAGE:-"{weights}"}
SAMPLES=${SAMPLES:-16}
PROMPT_BATCH_SIZE=${PROMPT_BATCH_SIZE:-32}
EPOCHS=${EPOCHS:-8}
BATCH_SIZE=${BATCH_SIZE:-64}
LEARNING_RATE=${LEARNING_RATE:-2e-3}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-160} # the direction takes 20
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-96}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-20} # optimizer steps

train_policy "${1:-}"; exit
