# Preset mistral_7b: the paper's set-up and hyper-parameters (section 5, table 2), for 8 GPUs of 80 GB.
#
#   bash run_all.sh mistral_7b --dry_run   checks data, tokenizers, models and memory first; no GPU, nothing is written
#   bash run_all.sh mistral_7b
#
# By itself it starts from a ready SFT policy and ready reward and cost models. On top of that:
#
#   TRAIN_SFT=1      stage 1: BASE_MODEL learns SFT_DATA, and is the policy that stage 3 starts from
#   TRAIN_REWARD=1   stage 2: reward and cost model from PREFERENCE_DATA, on the policy's decoder
#   ACTOR_MODEL REWARD_MODEL COST_MODEL BASE_MODEL                      folders or hub names, NAME@REVISION
#   SFT_DATA PREFERENCE_DATA PROMPTS TEST_PROMPTS (and ..._VALIDATION)  files, or hub names, NAME@SPLIT@REVISION
#   RANKS ZERO_STAGE LORA_DIM MAX_PROMPT_LENGTH MAX_NEW_TOKENS ...      see */training_scripts/mistral_7b*.sh; on one rank
#                    LORA_DIM brings ZERO_STAGE=0, for there is nothing to share
#   STEP1_FLAGS STEP2_FLAGS STEP3_FLAGS GENERATE_FLAGS SCORE_FLAGS      any further flags of those commands
#   GPUS GPU_MEMORY HOST_MEMORY   the machine that a dry run plans for; where there is no GPU, cards of 80 GB
#   ON_CPU=1         on a machine without GPU all the same: a rehearsal with tiny models in place of these
#
# EPOCHS, BATCH_SIZE, GRADIENT_ACCUMULATION, LEARNING_RATE, MAX_LENGTH, ZERO_STAGE, SEED and CHECKPOINT_INTERVAL count for
# every stage that has such a setting. Where several stages train, set them for one stage by its script alone, or as flags
# in STEP1_FLAGS, STEP2_FLAGS, STEP3_FLAGS, which come last and therefore count.
#
# Not as in the paper: its repetition penalty of 1.05 in the rollouts. The penalized distribution is not the one whose
# log-probabilities PPO compares, so responses are sampled at temperature 0.7 alone, here and in the evaluation. The
# paper's evaluation on HH-RLHF is TEST_PROMPTS=Anthropic/hh-rlhf@test. Its sources do not say how prompt and response
# share the 512 tokens; here they have 256 each.

# Commits, where public sources agree on them. Of the SFT policy none was found: the first run pins the one it meets, in
# OUTPUT/revisions.json, as of any other name without a commit.
SAFE_RLHF_COMMIT=${SAFE_RLHF_COMMIT:-9421ffafec3fa40a1f1a7d567b4d525079477ecb}
ULTRACHAT_COMMIT=${ULTRACHAT_COMMIT:-8049631c405ae6576f93f445c6b8166f76f5505a}
READY_POLICY=HuggingFaceH4/mistral-7b-sft-beta
READY_REWARD=PKU-Alignment/beaver-7b-v1.0-reward@375cd6a9f0d7e339d2199b05ba129a4a8906596d
READY_COST=PKU-Alignment/beaver-7b-v1.0-cost@c1bd343d2ddc2cb810bd736563c7ad0bf38f6b28

settle_switches TRAIN_SFT TRAIN_REWARD ON_CPU
refuse_both() { # $1 trains what $2 names
    if ${!1} && [ -n "${!2:-}" ]; then echo "error: $2: $1 trains that model; give one of the two" >&2; return 2; fi
}
refuse_both TRAIN_SFT ACTOR_MODEL
refuse_both TRAIN_REWARD REWARD_MODEL
refuse_both TRAIN_REWARD COST_MODEL
if ! $TRAIN_SFT; then ACTOR_MODEL=${ACTOR_MODEL:-$READY_POLICY}; fi
source presets/objectives.sh
ready_model() { # score model $1 is $3 where neither variable $2 nor its own says otherwise
    local own=MODEL_${1#*/}
    if [[ " $OBJECTIVES " == *" $1 "* ]] && [ -z "${!2:-}${!own:-}" ]; then
        printf -v "$own" %s "$3" && export SETTLED_MODELS="${SETTLED_MODELS:-} $own"
    fi
}
if ! $TRAIN_REWARD; then # of other objectives there is none
    ready_model reward/helpfulness REWARD_MODEL $READY_REWARD
    ready_model cost/harmlessness COST_MODEL $READY_COST
fi
export BASE_MODEL=${BASE_MODEL:-mistralai/Mistral-7B-v0.1@26bca36bde8333b5d7f72e9ed20ccda6a618af24}
export TOKENIZER=${TOKENIZER:-$READY_POLICY} # the base model's, with a chat template
export SFT_DATA=${SFT_DATA:-HuggingFaceH4/ultrachat_200k@train_sft@$ULTRACHAT_COMMIT}
export SFT_VALIDATION=${SFT_VALIDATION:-HuggingFaceH4/ultrachat_200k@test_sft@$ULTRACHAT_COMMIT}
export PREFERENCE_DATA=${PREFERENCE_DATA:-PKU-Alignment/PKU-SafeRLHF@train@$SAFE_RLHF_COMMIT}
export PREFERENCE_VALIDATION=${PREFERENCE_VALIDATION:-PKU-Alignment/PKU-SafeRLHF@test@$SAFE_RLHF_COMMIT}
export PROMPTS=${PROMPTS:-PKU-Alignment/PKU-SafeRLHF@train@$SAFE_RLHF_COMMIT}
TEST_PROMPTS=${TEST_PROMPTS:-PKU-Alignment/PKU-SafeRLHF@test@$SAFE_RLHF_COMMIT}

RUNS=${RUNS:-ppo_helpfulness ppo_harmlessness safe_rlhf fast_rl mgda gapo_p1 gapo_p2
    $(echo {p_gapo,morlhf,rewarded_soup}_0.{2,4,6,8})}
default_ranks 8
export RANKS MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}
JOBS=1 RESPONSE_JOBS=${RESPONSE_JOBS:-$(ranks_here)} # every run takes all GPUs, answering takes one
GENERATE_FLAGS="--temperature 0.7 --dtype bf16 --batch_size 64 ${GENERATE_FLAGS:-}"
SCORE_FLAGS="--dtype bf16 --batch_size 32 ${SCORE_FLAGS:-}"
# Guesses for the first ETA; what has been done corrects them.
SFT_SECONDS=60000 REWARD_SECONDS=20000 COST_SECONDS=20000 POLICY_SECONDS=40000 RESPONSE_SECONDS=3600 EVALUATION_SECONDS=7200

if [ "$(gpus_here)" -eq 0 ]; then
    export GPU_MEMORY=${GPU_MEMORY:-80}
    if ! $DRY_RUN && ! $ON_CPU; then
        echo "error: preset mistral_7b: there is no GPU on this machine (--dry_run checks and plans without one)" >&2
        exit 2
    fi
fi
