# Preset tiny: SafeRLHF-mini and a decoder of 228,000 parameters; the rows of the paper's table 1 and the fronts of its
# figure 3, and the rows once more with the training cost × 4.

IMBALANCED="ppo_harmlessness safe_rlhf fast_rl morlhf_0.5 mgda gapo_p1 gapo_p2" # helpfulness alone has no cost
RUNS=${RUNS:-ppo_helpfulness ppo_harmlessness safe_rlhf fast_rl morlhf_0.5 mgda gapo_p1 gapo_p2
    $(echo {p_gapo,morlhf,rewarded_soup}_0.{2,4,6,8}) $(printf '%s@imbalanced ' $IMBALANCED)}
DATA_SECONDS=10 SFT_SECONDS=50 REWARD_SECONDS=60 COST_SECONDS=45 POLICY_SECONDS=55 RESPONSE_SECONDS=2 EVALUATION_SECONDS=60
TEST_PROMPTS=$OUTPUT/data/prompts_test.jsonl
MAX_NEW_TOKENS=96
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # nothing is on a hub
GOLD="--gold utils.safe_rlhf_mini:gold_scores"
# As in the paper, each objective is judged on prompts of its own.
JUDGE_PROMPTS="--prompts helpfulness=$OUTPUT/data/prompts_test_benign.jsonl harmlessness=$OUTPUT/data/prompts_test_risky.jsonl"

make_data() {
    "$PYTHON" -m utils.safe_rlhf_mini --output_dir "$OUTPUT/data" --seed 0
    grep '"risky": false' "$TEST_PROMPTS" > "$OUTPUT/data/prompts_test_benign.jsonl"
    grep '"risky": true' "$TEST_PROMPTS" > "$OUTPUT/data/prompts_test_risky.jsonl"
    "$PYTHON" utils/make_base.py --sft_data "$OUTPUT/data/sft_train.jsonl" \
        --preference_data "$OUTPUT/data/preferences_train.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" \
        --vocab_size 768 --hidden_size 64 --num_layers 3 --num_heads 4 --num_kv_heads 2 --intermediate_size 160
}
