#!/usr/bin/env bash
# Stage 3 by rejection sampling, preset mistral_7b: DPA's numbers (arXiv 2402.18571) where they are known, which are 16
# replies a direction, 4 iterations and angles of up to 45 degrees; the rest is ours.
#
#   source presets/mistral_7b.sh names the models and data
source "$(dirname "${BASH_SOURCE[0]}")/train_policy.sh"

OUTPUT=${OUTPUT:-output/mistral_7b}
default_ranks 8
DATA=$PROMPTS
ZERO_STAGE=${ZERO_STAGE:-3}
DTYPE=${DTYPE:-bf16}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-true}
MIN_ANGLE=${MIN_ANGLE:-0}
MAX_ANGLE=${MAX_ANGLE:-45}
ITERATIONS=${ITERATIONS:-4}
ITERATION_PROMPTS=${ITERATION_PROMPTS:-} # all of them
SAMPLES=${SAMPLES:-16}
PROMPT_BATCH_SIZE=${PROMPT_BATCH_SIZE:-8}
EPOCHS=${EPOCHS:-1}
BATCH_SIZE=${BATCH_SIZE:-4}
GRADIENT_ACCUMULATION=${GRADIENT_ACCUMULATION:-2}
LEARNING_RATE=${LEARNING_RATE:-5e-6}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-320} # with the direction
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-100} # optimizer steps

train_policy "${1:-}"; exit
