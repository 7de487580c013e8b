"""The policy that is trained on pairs, and its reference."""

import argparse

from transformers import PreTrainedTokenizerBase

from step3_dpo.pairs import REPLIES
from utils.engines.arrival import arriving, copy_of
from utils.engines.engines import engine_config, make_frozen_engine
from utils.models.configs import DTYPES
from utils.models.loading import load_causal_lm
from utils.models.lora import with_adapters
from utils.models.shared_prompts import shares_prompts
from utils.policy.forward import PolicyForward
from utils.policy.trained import TrainedPolicy
from utils.process.rank_watch import beat


class PairPolicy(TrainedPolicy):
    """The policy; where the reference's log-probabilities are not kept, beside a frozen one.

    With LoRA both are trees around the parameters of one model, and the reference is the one without adapters.

    Attributes:
        reference: None where what it says of the pairs is computed before training, by the policy, which it is then.
    """

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, total_steps: int):
        beat("loading the policy")
        per_batch = args.reference_log_probs == "per_batch"
        with arriving(engine_config(args, frozen=per_batch or args.lora_dim > 0)):
            base = load_causal_lm(args.actor_model, "--actor_model", DTYPES[args.dtype])
        self.pad_id, model = tokenizer.pad_token_id, base
        if args.lora_dim:
            model = with_adapters(base, args)
        elif per_batch:
            model = copy_of(base, engine_config(args))
        shares = shares_prompts(args, base, REPLIES)
        self.reference = None
        if per_batch:
            frozen = make_frozen_engine(base, args)
            self.reference = PolicyForward(frozen, 1.0, args.logits_chunk_size, shares)
        super().__init__(model, args, args.learning_rate, total_steps, 1.0, shares)
