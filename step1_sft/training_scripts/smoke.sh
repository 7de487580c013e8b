#!/usr/bin/env bash
# Stage 1, preset smoke: preset tiny, shorter.
OUTPUT=${OUTPUT:-output/smoke} EPOCHS=${EPOCHS:-2} exec bash "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
