# Preset tiny: SafeRLHF-mini and a decoder of 228,000 parameters; eight policies beside the SFT model.

RUNS=${RUNS:-ppo_helpfulness ppo_harmlessness morlhf_0.5 mgda gapo_p1 gapo_p2 p_gapo_0.2 p_gapo_0.8}
DATA_SECONDS=10 SFT_SECONDS=50 REWARD_SECONDS=60 COST_SECONDS=45 POLICY_SECONDS=90 EVALUATION_SECONDS=60
TEST_PROMPTS=$OUTPUT/data/prompts_test.jsonl
MAX_NEW_TOKENS=96
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # nothing is on a hub
GOLD="--gold utils.safe_rlhf_mini:gold_scores"

make_data() {
    "$PYTHON" -m utils.safe_rlhf_mini --output_dir "$OUTPUT/data" --seed 0
    "$PYTHON" utils/make_base.py --sft_data "$OUTPUT/data/sft_train.jsonl" \
        --preference_data "$OUTPUT/data/preferences_train.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" \
        --vocab_size 768 --hidden_size 64 --num_layers 3 --num_heads 4 --num_kv_heads 2 --intermediate_size 160
}
