"""The models of step 3 under DeepSpeed: actor, reference, one critic an objective, reward and cost models."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from step3_gapo.constrained.mixture import TaskMixture
from step3_gapo.critics import build_critics, critic_modules
from step3_gapo.needs import Needs
from utils.engines.arrival import arriving, copy_of
from utils.engines.engines import Engine, engine_config, gathered_weights, make_frozen_engine
from utils.engines.parking import park
from utils.models.card import last_figures, write_card
from utils.models.configs import DTYPES
from utils.models.loading import load_causal_lm
from utils.models.lora import export_trained, with_adapters
from utils.models.shared_prompts import shares_prompts
from utils.output.files import finished_files, mark_finished
from utils.policy.actor import Actor
from utils.policy.forward import PolicyForward
from utils.process.distributed import is_main
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective
from utils.scoring.scorers import make_scorers
from utils.scoring.verdicts import Judge


class RLHFEngine:
    """Builds and holds all models; knows nothing of algorithms.

    Every model is read once: what starts from the same weights is copied, before an engine puts hooks into its modules.
    With LoRA the policy, its reference and the critics are trees around the parameters of one model.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        objectives: list[Objective],
        needs: Needs,
        tokenizer: PreTrainedTokenizerBase,
        generation: GenerationConfig,
        total_steps: int,
        judges: Sequence[Judge] = (),
        mixture: TaskMixture | None = None,
    ):
        dtype = DTYPES[args.dtype]
        self.objectives, self.mixture, self.tokenizer = objectives, mixture, tokenizer
        self.needs, self.args = needs, args
        beat("loading models")
        self.scorers = make_scorers(objectives, args, tokenizer, needs.starts)
        self.judges = [judge.loaded(args) for judge in judges]
        with arriving(engine_config(args, frozen=True)):
            reference = load_causal_lm(args.actor_model, "--actor_model", dtype)
        policy = with_adapters(reference, args) if args.lora_dim else copy_of(reference, engine_config(args))
        critics = critic_modules(reference, args, needs.critics, objectives, self.scorers)
        frozen = make_frozen_engine(reference, args)
        if args.park_frozen_models and not args.lora_dim and args.zero_stage < 3:
            park(frozen.module)
        shares = shares_prompts(args, reference, args.responses_per_prompt)
        self.reference = PolicyForward(frozen, args.temperature, args.logits_chunk_size, shares)
        self.critics = build_critics(args, needs.critics, critics, total_steps)
        self.actor = Actor(policy, generation, args, total_steps)

    def trained(self) -> dict[str, Engine]:
        """The engines whose states a checkpoint holds."""
        return {"actor": self.actor.engine} | {f"critic_{i}": critic.engine for i, critic in enumerate(self.critics)}

    def save_policy(self, directory: str | Path) -> None:
        """Export the actor into a Hugging Face directory, gathered one parameter at a time; complete or not at all."""
        model, args = self.actor.engine.module, self.args
        weights = gathered_weights(model, trained_only=args.lora_export == "adapter")
        if is_main():
            with finished_files(directory) as folder:
                export_trained(model, self.tokenizer, folder, weights, args)
                write_card(folder, directory, vars(args), last_figures(directory))
            mark_finished(directory)
