# Preset hh: the same pipeline on human data, a decoder from random initialization sized by variables.
#
#   DATA_DIR=/path/to/data bash run_all.sh hh
#
# DATA_DIR holds, anywhere below it, folders or files named helpful... and harmless... in HH-RLHF's format, safety pairs
# or PKU-SafeRLHF rows ("saferlhf" in the path), and optionally instructions ("dolly" or "alpaca" in the path).

RUNS=${RUNS:-ppo_helpfulness ppo_harmlessness morlhf_0.5 gapo_p1 p_gapo_0.2 p_gapo_0.8}
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then GPU=true; else GPU=false; fi
FRACTION=${FRACTION:-$($GPU && echo 1.0 || echo 0.25)} # of every file
TEST_FRACTION=${TEST_FRACTION:-$($GPU && echo 1.0 || echo 0.3)} # of the held-out prompts
VOCAB_SIZE=${VOCAB_SIZE:-2000}
HIDDEN_SIZE=${HIDDEN_SIZE:-96}
NUM_LAYERS=${NUM_LAYERS:-3}
NUM_HEADS=${NUM_HEADS:-4}
export MAX_LENGTH=${MAX_LENGTH:-192} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-64}

DATA_SECONDS=40 SFT_SECONDS=90 REWARD_SECONDS=90 COST_SECONDS=90 POLICY_SECONDS=90 RESPONSE_SECONDS=8 EVALUATION_SECONDS=60
TEST_PROMPTS=$OUTPUT/data/test/helpful.jsonl:$TEST_FRACTION,$OUTPUT/data/test/harmless.jsonl:$TEST_FRACTION
TEST_PROMPTS+=,$OUTPUT/data/test/safety.jsonl:$TEST_FRACTION

if ! [ -d "${DATA_DIR:-}" ]; then
    echo "error: DATA_DIR=${DATA_DIR:-}: no such folder (preset hh reads HH-RLHF files and safety pairs there)" >&2
    exit 2
fi

files() { # all data files below DATA_DIR whose path there has $1 in it, joined by commas, each with the fraction
    (cd "$DATA_DIR" && find -L . -type f -ipath "*$1*") |
        { grep -E '\.(jsonl|jsonl\.gz|json|csv|parquet)$' || true; } |
        LC_ALL=C sort | sed "s|^\./|$DATA_DIR/|; s|\$|:$FRACTION|" | paste -sd,
}

make_data() {
    local kind spec inputs=() specs=()
    for kind in helpful=/helpful harmless=/harmless safety=saferlhf instructions=dolly instructions=alpaca; do
        spec=$(files "${kind#*=}")
        if [ -n "$spec" ]; then
            inputs+=(--input "${kind%%=*}=$spec")
            specs+=("$spec")
        elif [ "${kind%%=*}" != instructions ]; then
            echo "error: DATA_DIR=$DATA_DIR: no data file has \"${kind#*=}\" in its path" >&2
            return 2
        fi
    done
    # Every row is looked at, whatever the fraction.
    "$PYTHON" utils/inspect_data.py "${specs[@]//:$FRACTION/}" --json "$OUTPUT/data/inspection.json"
    "$PYTHON" utils/split_data.py "${inputs[@]}" --output_dir "$OUTPUT/data"
    "$PYTHON" utils/make_base.py --sft_data "$OUTPUT/data/train/helpful.jsonl,$OUTPUT/data/train/safety.jsonl" \
        --preference_data "$OUTPUT/data/train/harmless.jsonl" \
        --tokenizer_dir "$OUTPUT/tokenizer" --model_dir "$OUTPUT/base" --vocab_size "$VOCAB_SIZE" \
        --hidden_size "$HIDDEN_SIZE" --num_layers "$NUM_LAYERS" --num_heads "$NUM_HEADS" --num_kv_heads "$NUM_HEADS" \
        --intermediate_size $((HIDDEN_SIZE * 5 / 2)) --max_position_embeddings $((MAX_LENGTH * 2))
}
