# Sourced by utils/launch/objectives.sh: the objectives of presets, and of trainings by hand, that name none of their own.
export OBJECTIVES=${OBJECTIVES:-reward/helpfulness cost/harmlessness}
