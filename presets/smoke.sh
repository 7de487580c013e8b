# Preset smoke: everything once, in small. Policies train on two ranks with ZeRO-2.

RUNS=${RUNS:-morlhf_0.5 gapo_p1}
DATA_SECONDS=6 SFT_SECONDS=25 REWARD_SECONDS=25 COST_SECONDS=25 POLICY_SECONDS=25 RESPONSE_SECONDS=2 EVALUATION_SECONDS=20
POLICY_JOBS=1 # each policy has two ranks
CORPUS_SIZE="--num_sft 4000 --num_preferences 6000 --num_validation 256 --num_validation_prompts 128 --num_test_prompts 128"
source presets/safe_rlhf_mini.sh
