#!/usr/bin/env bash
# Stage 2, preset smoke: the reward model of preset tiny, on less data.
OUTPUT=${OUTPUT:-output/smoke} EPOCHS=${EPOCHS:-1} exec bash "$(dirname "${BASH_SOURCE[0]}")/tiny_helpfulness.sh"
