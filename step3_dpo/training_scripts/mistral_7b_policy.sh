#!/usr/bin/env bash
# Stage 3 on pairs, preset mistral_7b: PKU-SafeRLHF's pairs and MODPO's settings (arXiv 2310.03708): β 0.1, LoRA of rank
# 64, learning rate 5e-4 with a cosine, 3 epochs, 96 pairs a step, 512 tokens.
#
#   source presets/mistral_7b.sh names the models and data; run_all.sh mistral_7b calls this for every run of its RUNS that
#   is trained on pairs, such as RUNS="dpo_helpfulness dpo_harmlessness modpo_0.5 gapo_dpo p_gapo_dpo_0.5"
source "$(dirname "${BASH_SOURCE[0]}")/train_policy.sh"

OUTPUT=${OUTPUT:-output/mistral_7b}
default_ranks 8
LORA_DIM=${LORA_DIM:-64}
ZERO_STAGE=${ZERO_STAGE:-2}
DTYPE=${DTYPE:-bf16}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-true}
BETA=${BETA:-0.1}
EPOCHS=${EPOCHS:-3}
BATCH_SIZE=${BATCH_SIZE:-4} # pairs
GRADIENT_ACCUMULATION=${GRADIENT_ACCUMULATION:-3}
LOGITS_CHUNK_SIZE=${LOGITS_CHUNK_SIZE:-512} # tokens
LEARNING_RATE=${LEARNING_RATE:-5e-4}
MAX_LENGTH=${MAX_LENGTH:-512}
SEED=${SEED:-42}
CHECKPOINT_INTERVAL=${CHECKPOINT_INTERVAL:-100} # optimizer steps

train_policy "${1:-}"; exit
