# Preset dpo: SafeRLHF-mini, whose pairs both objectives have labelled. Per-objective DPO, fixed weights, MODPO, RACO, GAPO,
# P-GAPO and MGDA on the same pairs; MORLHF and P-GAPO with their experts beside them, and rows with an objective's β × 4.

FRONTS=$(echo {dpo_lw,raco,p_gapo_dpo,modpo}_0.{2,4,6,8})
RUNS=${RUNS:-dpo_helpfulness dpo_harmlessness $FRONTS gapo_dpo mgda_dpo
    dpo_harmlessness@imbalanced $(printf '%s@imbalanced ' $FRONTS) gapo_dpo@imbalanced mgda_dpo@imbalanced
    ppo_helpfulness ppo_harmlessness gapo_p1 $(echo {p_gapo,morlhf}_0.{2,4,6,8})}
SCRIPTS=tiny
DATA_SECONDS=10 SFT_SECONDS=50 REWARD_SECONDS=60 COST_SECONDS=45 POLICY_SECONDS=60 RESPONSE_SECONDS=2 EVALUATION_SECONDS=60
source presets/safe_rlhf_mini.sh
