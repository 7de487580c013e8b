# Preset tiny: SafeRLHF-mini and a decoder of 228,000 parameters; the rows of the paper's table 1 and the fronts of its
# figure 3, and the rows once more with the training cost × 4.

IMBALANCED="ppo_harmlessness safe_rlhf fast_rl morlhf_0.5 mgda gapo_p1 gapo_p2" # helpfulness alone has no cost
RUNS=${RUNS:-ppo_helpfulness ppo_harmlessness safe_rlhf fast_rl morlhf_0.5 mgda gapo_p1 gapo_p2
    $(echo {p_gapo,morlhf,rewarded_soup}_0.{2,4,6,8}) rewarded_soup_0.5 $(printf '%s@imbalanced ' $IMBALANCED)}
DATA_SECONDS=10 SFT_SECONDS=50 REWARD_SECONDS=60 COST_SECONDS=45 POLICY_SECONDS=55 RESPONSE_SECONDS=2 EVALUATION_SECONDS=60
source presets/safe_rlhf_mini.sh
