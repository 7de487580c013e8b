#!/usr/bin/env bash
# Stage 3 on pairs, presets of SafeRLHF-mini: one policy. Every method starts from the same policy and sees the same pairs.
#
#   bash step3_dpo/training_scripts/tiny_policy.sh gapo_dpo
source "$(dirname "${BASH_SOURCE[0]}")/train_policy.sh"

OUTPUT=${OUTPUT:-output/dpo}
default_ranks 1
PREFERENCE_DATA=$OUTPUT/data/preferences_train.jsonl
PREFERENCE_VALIDATION=$OUTPUT/data/preferences_validation.jsonl
ZERO_STAGE=${ZERO_STAGE:-0}
BETA=${BETA:-0.1}
EPOCHS=${EPOCHS:-1}
BATCH_SIZE=${BATCH_SIZE:-64} # pairs
LOGITS_CHUNK_SIZE=${LOGITS_CHUNK_SIZE:-0} # all at once: the vocabulary is small
LEARNING_RATE=${LEARNING_RATE:-5e-4}
MAX_LENGTH=${MAX_LENGTH:-192}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-50} # optimizer steps

train_policy "${1:-}"; exit
