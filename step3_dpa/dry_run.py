"""`--dry_run` of the stage: its models, prompts and memory."""

import argparse
import random
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_dpa.prompts import asked, draw_directions
from utils.data.records import Prompt
from utils.memory.dry_run import Described, optimizer_lines, print_dry_run, surroundings
from utils.models.configs import load_config, skeleton
from utils.process.distributed import world_size
from utils.scoring.objectives import Objective, by_source
from utils.scoring.score_models import loader_of
from utils.steering.directions import Steering
from utils.supervised.steps import steps_per_epoch

LOOKED_AT = 1000  # prompts whose lengths are measured


def print_steered_dry_run(
    args: argparse.Namespace,
    policy: PreTrainedModel,
    objectives: Sequence[Objective],
    sides: tuple[list[Prompt], list[Prompt]],
    steering: Steering,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Tables of everything the run would hold and do."""
    train, held_out = sides
    generator = random.Random(args.seed)
    prompts = generator.sample(train, min(len(train), LOOKED_AT))
    directions = draw_directions(steering.attributes, len(prompts), args, generator)
    lengths = [len(asked(*pair, steering, tokenizer).prompt) for pair in zip(prompts, directions, strict=True)]
    around = surroundings(args, (max(lengths), args.max_new_tokens))
    models = [Described("policy", args.actor_model, policy, ("dpa",), "own; samples alone, then is trained")]
    models += [described(group) for group in by_source(objectives) if not group[0].is_function]
    taken = (args.prompts_per_iteration or len(train)) * args.directions_per_prompt
    measured = len(held_out) * args.directions_per_prompt
    batches = {
        "attributes": ", ".join(steering.attributes),
        "prompts of an iteration, with a direction each": f"{taken} to train on, {measured} to measure on",
        "replies of an iteration": (taken + measured) * args.samples_per_direction,
        "longest prompt (tokens)": max(lengths),
        "iterations, and epochs in each": f"{args.iterations}, {args.num_train_epochs}",
        "dialogues an optimizer step": args.per_device_train_batch_size
        * args.gradient_accumulation_steps
        * world_size(),
        **optimizer_lines(args, steps_per_epoch(taken, args) * args.num_train_epochs),
    }
    print_dry_run(args, models, batches, around)


def described(group: Sequence[Objective]) -> Described:
    """The score model of attributes that share one."""
    first = group[0]
    config = load_config(first.path, first.flag)
    model = skeleton(loader_of(config), config, first.path, first.flag)
    names = ", ".join(objective.name for objective in group)
    return Described(f"score of {names}", first.path, model, ("scored margin",), "alone, whole on every rank")
