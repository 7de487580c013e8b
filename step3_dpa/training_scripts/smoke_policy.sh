#!/usr/bin/env bash
# Stage 3 by rejection sampling, preset smoke: preset tiny's on two ranks with ZeRO-2, two iterations.
#
#   bash step3_dpa/training_scripts/smoke_policy.sh
if [ -z "${RANKS:-}${HOSTFILE:-}" ]; then export RANKS=2 RANKS_MAY_SHRINK=true; fi
export OUTPUT=${OUTPUT:-output/smoke} ZERO_STAGE=${ZERO_STAGE:-2} BATCH_SIZE=${BATCH_SIZE:-32} ITERATIONS=${ITERATIONS:-2}
exec bash "$(dirname "${BASH_SOURCE[0]}")/tiny_policy.sh" "$@"
