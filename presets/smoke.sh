# Preset smoke: everything once, in small. Policies train on two ranks with ZeRO-2.

RUNS=${RUNS:-morlhf_0.5 gapo_p1}
DATA_SECONDS=6 SFT_SECONDS=25 REWARD_SECONDS=25 COST_SECONDS=25 POLICY_SECONDS=25 RESPONSE_SECONDS=2 EVALUATION_SECONDS=20
POLICY_JOBS=1 # each policy has two ranks
TEST_PROMPTS=$OUTPUT/data/prompts_test.jsonl
MAX_NEW_TOKENS=96
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # nothing is on a hub
GOLD="--gold utils.safe_rlhf_mini:gold_scores"
# As in the paper, each objective is judged on prompts of its own.
JUDGE_PROMPTS="--prompts helpfulness=$OUTPUT/data/prompts_test_benign.jsonl harmlessness=$OUTPUT/data/prompts_test_risky.jsonl"

make_data() {
    "$PYTHON" -m utils.safe_rlhf_mini --output_dir "$OUTPUT/data" --seed 0 --num_sft 4000 --num_preferences 6000 \
        --num_validation 256 --num_validation_prompts 128 --num_test_prompts 128
    grep '"risky": false' "$TEST_PROMPTS" > "$OUTPUT/data/prompts_test_benign.jsonl"
    grep '"risky": true' "$TEST_PROMPTS" > "$OUTPUT/data/prompts_test_risky.jsonl"
    "$PYTHON" utils/make_base.py --sft_data "$OUTPUT/data/sft_train.jsonl" \
        --preference_data "$OUTPUT/data/preferences_train.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" \
        --vocab_size 768 --hidden_size 64 --num_layers 3 --num_heads 4 --num_kv_heads 2 --intermediate_size 160
}
