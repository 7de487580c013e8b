#!/usr/bin/env bash
# Stage 2, preset mistral_7b: the reward model of helpfulness, from the better answer of PKU-SafeRLHF's pairs.
source "$(dirname "${BASH_SOURCE[0]}")/mistral_7b_score_model.sh"

train_score_model helpfulness reward; exit
