# Preset cgpo: SafeRLHF-mini where those who say which response is better like to be flattered, so that the reward model of
# helpfulness has a hole. PPO, MORLHF and GAPO on its scores; CGPO's three losses on two tasks with judges, and one of them
# with the tasks' gradients combined by GAPO.
#
#   WARM_START=dpo_harmlessness RUNS="dpo_harmlessness cgpo_crpg" bash run_all.sh cgpo    starts from a policy of step3_dpo

RUNS=${RUNS:-ppo_helpfulness morlhf_0.5 gapo_p1 cgpo_crpg cgpo_crraft cgpo_codpo cgpo_crpg_gapo}
SCRIPTS=tiny
DATA_SECONDS=10 SFT_SECONDS=50 REWARD_SECONDS=60 COST_SECONDS=45 POLICY_SECONDS=60 RESPONSE_SECONDS=2 EVALUATION_SECONDS=30
CORPUS_SIZE=${CORPUS_SIZE:---flattery 3}
export TASKS=${TASKS:-presets/cgpo_tasks.json}
RULES=utils.safe_rlhf_mini.judges
export JUDGES=${JUDGES:-answers=$RULES:answers plain=$RULES:plain safe=harmlessness:0}
source presets/safe_rlhf_mini.sh
