"""`--dry_run` of the stage: its models, pairs and memory."""

import argparse
from collections.abc import Sequence

from step3_dpo.frozen import Margin, MarginModel
from step3_dpo.methods import compares_gradients
from step3_dpo.objectives import PairObjective
from step3_dpo.pairs import REPLIES
from utils.combining.algorithm import Algorithm
from utils.data.encoding import Encoded
from utils.memory.dry_run import Described, optimizer_lines, print_dry_run, surroundings
from utils.models.checking import check_causal_lm
from utils.models.configs import load_config, skeleton
from utils.models.shared_prompts import shares_prompts
from utils.process.distributed import world_size
from utils.scoring.score_models import loader_of
from utils.supervised.examples import Examples
from utils.supervised.steps import steps_per_epoch


def print_pair_dry_run(
    args: argparse.Namespace,
    objectives: Sequence[PairObjective],
    margins: Sequence[Margin],
    algorithm: Algorithm,
    sides: tuple[Examples, Examples],
) -> None:
    """Tables of everything the run would hold and do."""
    train, validation = sides
    policy = check_causal_lm(args.actor_model, "--actor_model")
    uses, note = ("dpo",), "own; its first pass is the reference"
    if args.reference_log_probs == "per_batch":
        uses, note = ("dpo", "reference"), "own; start of the reference"
    models = [Described("policy", args.actor_model, policy, uses, note)]
    models += [described for margin in margins if (described := described_margin(margin))]
    examples = [*train, *validation]
    lengths = longest_of(examples)
    shares = shares_prompts(args, policy, REPLIES) and not any(example.other_prompts for example in examples)
    around = surroundings(
        args,
        lengths,
        len(algorithm.losses),
        compares_gradients(args),
        sequences=REPLIES,
        shares_prompts=shares,
    )
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    batches = {
        "pairs": f"{train.total} to train on, {validation.total} to validate on",
        "of these an optimizer step": per_step,
        "longest prompt, reply (tokens)": f"{lengths[0]}, {lengths[1]}",
        "objectives": ", ".join(o.name + ("" if o.optimized else " (monitored)") for o in objectives),
        "epochs": args.num_train_epochs,
        **optimizer_lines(args, steps_per_epoch(train.total, args) * args.num_train_epochs),
    }
    if shares:
        batches["a prompt"] = "is read once for both replies"
    print_dry_run(args, models, batches, around)


def longest_of(examples: Sequence[Encoded]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest reply."""
    prompts = (len(ids) for example in examples for ids in (example.prompt, *example.other_prompts))
    return max(prompts), max(len(ids) for example in examples for ids in example.responses)


def described_margin(margin: Margin) -> Described | None:
    """The model behind a margin; None of a function."""
    use = "margin"
    if isinstance(margin, MarginModel):
        model = check_causal_lm(margin.path, margin.flag)
    elif margin.is_function:
        return None
    else:
        config, use = load_config(margin.path, margin.flag), "scored margin"
        model = skeleton(loader_of(config), config, margin.path, margin.flag)
    return Described(f"margin of {margin.name}", margin.path, model, (use,), "alone, before the policy is loaded")
