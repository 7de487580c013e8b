#!/usr/bin/env bash
# Stage 3 on pairs, preset hh: the pairs of people that stage 2 trains reward and cost model on.
#
#   RUNS="dpo_helpfulness dpo_harmlessness gapo_dpo" DATA_DIR=... bash run_all.sh hh
source "$(dirname "${BASH_SOURCE[0]}")/train_policy.sh"

OUTPUT=${OUTPUT:-output/hh}
default_ranks 1
PREFERENCE_DATA=$OUTPUT/data/train/safety.jsonl,$OUTPUT/data/train/harmless.jsonl
PREFERENCE_VALIDATION=$OUTPUT/data/validation/safety.jsonl,$OUTPUT/data/validation/harmless.jsonl
PAIRS_helpfulness=${PAIRS_helpfulness:-$OUTPUT/data/train/helpful.jsonl}
VALIDATION_PAIRS_helpfulness=${VALIDATION_PAIRS_helpfulness:-$OUTPUT/data/validation/helpful.jsonl}
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
