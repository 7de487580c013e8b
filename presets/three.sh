# Preset three: preset tiny with a third objective, a function. Every objective alone, all of them by MORLHF with equal
# weights and by GAPO, and P-GAPO for a preference of each and for none.

OBJECTIVES=${OBJECTIVES:-reward/helpfulness cost/harmlessness function/conciseness=examples/reward_functions.py:conciseness}
RUNS=${RUNS:-ppo_helpfulness ppo_harmlessness ppo_conciseness morlhf_0.33_0.33_0.33 gapo_p1
    $(echo p_gapo_{0.6_0.2_0.2,0.2_0.6_0.2,0.2_0.2_0.6,0.33_0.33_0.33})}
SCRIPTS=tiny
DATA_SECONDS=10 SFT_SECONDS=50 REWARD_SECONDS=60 COST_SECONDS=45 POLICY_SECONDS=60 RESPONSE_SECONDS=2 EVALUATION_SECONDS=30
source presets/safe_rlhf_mini.sh
