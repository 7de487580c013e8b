# Sourced by the presets of the embedded benchmark: SafeRLHF-mini and a decoder of 228,000 parameters.

TEST_PROMPTS=$OUTPUT/data/prompts_test.jsonl
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-96}
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # nothing is on a hub
GOLD=(--gold utils.safe_rlhf_mini:gold_scores)

choose_judge_prompts() { # as in the paper, each objective is judged on prompts of its own
    grep '"risky": false' "$TEST_PROMPTS" > "$OUTPUT/data/prompts_test_benign.jsonl"
    grep '"risky": true' "$TEST_PROMPTS" > "$OUTPUT/data/prompts_test_risky.jsonl"
    JUDGE_PROMPTS=()
    if is_objective helpfulness; then JUDGE_PROMPTS+=(helpfulness="$OUTPUT/data/prompts_test_benign.jsonl"); fi
    if is_objective harmlessness; then JUDGE_PROMPTS+=(harmlessness="$OUTPUT/data/prompts_test_risky.jsonl"); fi
    if [ ${#JUDGE_PROMPTS[@]} -gt 0 ]; then JUDGE_PROMPTS=(--prompts "${JUDGE_PROMPTS[@]}"); fi
}

make_data() {
    "$PYTHON" -m utils.safe_rlhf_mini --output_dir "$OUTPUT/data" --seed 0 ${CORPUS_SIZE:-}
    "$PYTHON" utils/make_base.py --sft_data "$OUTPUT/data/sft_train.jsonl" \
        --preference_data "$OUTPUT/data/preferences_train.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" \
        --vocab_size 768 --hidden_size 64 --num_layers 3 --num_heads 4 --num_kv_heads 2 --intermediate_size 160
}
