"""Prompts of a run, and what an iteration asks of them: each with a direction in its system turn."""

import argparse
import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from utils.data import load_prompts
from utils.data.encoding import Encoded, encode_prompt, fit_lengths
from utils.data.records import Message, Prompt
from utils.process.distributed import print_main
from utils.process.errors import UserError
from utils.steering.directions import Direction, Steering, at_angle, spread
from utils.supervised.examples import hold_out

HELD_OUT = "held_out"  # the part that is measured; its directions are the same in every iteration
TRAIN = "train"


@dataclass(frozen=True)
class Asked(Encoded):
    """A prompt with a direction.

    Attributes:
        plain: the prompt without it, as score models read it.
        direction: what it asks for.
    """

    plain: Prompt | None = None
    direction: Direction | None = None

    def untold(self, tokenizer: PreTrainedTokenizerBase) -> "Asked":
        """The same, but for ids without the direction."""
        return dataclasses.replace(self, prompt=encode_prompt(tokenizer, self.plain.messages))


def read_prompts(
    args: argparse.Namespace, steering: Steering, tokenizer: PreTrainedTokenizerBase, rows: int | None
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts that fit `--max_prompt_length` with the longest message; prints what was read.

    Args:
        rows: of the policy's embedding.

    Raises:
        UserError: see `load_prompts`, `fit_lengths` and `hold_out`.
    """
    prompts, summary = load_prompts(args.data, args.seed)
    longest = longest_direction(args, steering, tokenizer)
    asked = [dataclasses.replace(p, messages=steering.steered(p.messages, longest)) for p in prompts]
    plain = {id(with_it): prompt for with_it, prompt in zip(asked, prompts, strict=True)}
    limits = {"max_prompt_length": args.max_prompt_length, "unfit": args.unfit, "embedding_rows": rows}
    fitting = fit_lengths(tokenizer, asked, summary, args.overlong, **limits)
    train, held_out = hold_out([plain[id(each.record)] for each in fitting], args.validation_fraction, args.seed)
    print_main("\n".join(summary.lines()))
    print_main(f"{len(train)} prompts to train on, {len(held_out)} to measure on")
    if args.prompts_per_iteration and args.prompts_per_iteration > len(train):
        raise UserError(f"--prompts_per_iteration {args.prompts_per_iteration}: there are {len(train)} to train on")
    return train, held_out


def fingerprint(sides: Sequence[Sequence[Prompt]]) -> str:
    """sha256 of the turns of all prompts, in hexadecimal."""
    turns = [[prompt.messages for prompt in side] for side in sides]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def longest_direction(args: argparse.Namespace, steering: Steering, tokenizer: PreTrainedTokenizerBase) -> Direction:
    """The direction whose message has most tokens, of angles a degree apart."""
    angles = spread(args.min_angle, args.max_angle, max(2, round(args.max_angle - args.min_angle) + 1))
    equal = equal_shares(len(steering.attributes) - 1)
    directions = [at_angle(steering.attributes, angle, equal) for angle in angles]
    return max(directions, key=lambda direction: len(tokenizer(steering.text(direction))["input_ids"]))


def equal_shares(number: int) -> list[float]:
    return [number**-0.5] * number


def draw_directions(
    names: Sequence[str], number: int, args: argparse.Namespace, generator: random.Random
) -> list[Direction]:
    """Directions for so many prompts, as `--direction_draw` says.

    Their angles to the first attribute are between `--min_angle` and `--max_angle`; of three and more attributes the
    others share sin θ like the absolute values of normal numbers, which is uniform over their positive directions
    (ours: DPA has two attributes).
    """
    least, most = args.min_angle, args.max_angle
    if args.direction_draw == "even":
        angles = [least + (most - least) * (i + 0.5) / number for i in range(number)]
        generator.shuffle(angles)
    else:
        angles = [generator.uniform(least, most) for _ in range(number)]
    return [at_angle(names, angle, draw_shares(len(names) - 1, generator)) for angle in angles]


def draw_shares(number: int, generator: random.Random) -> list[float]:
    """A unit vector of so many numbers from 0 on; without drawing where there is one."""
    if number == 1:
        return [1.0]
    normals = [abs(generator.gauss(0.0, 1.0)) for _ in range(number)]
    length = sum(each * each for each in normals) ** 0.5
    return [each / length for each in normals]


def ask(
    prompts: Sequence[Prompt],
    part: str,
    iteration: int,
    args: argparse.Namespace,
    steering: Steering,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Asked]:
    """What an iteration asks: the prompts it takes, each with `--directions_per_prompt` directions.

    Of held-out prompts all are taken, with directions that are the same in every iteration, so that it can be told how
    the policy's ratings move.
    """
    generator = random.Random(f"{args.seed}/{part}" if part == HELD_OUT else f"{args.seed}/{part}/{iteration}")
    if part == TRAIN and args.prompts_per_iteration:
        prompts = generator.sample(list(prompts), args.prompts_per_iteration)
    taken = [prompt for prompt in prompts for _ in range(args.directions_per_prompt)]
    directions = draw_directions(steering.attributes, len(taken), args, generator)
    return [asked(prompt, direction, steering, tokenizer) for prompt, direction in zip(taken, directions, strict=True)]


def asked(prompt: Prompt, direction: Direction, steering: Steering, tokenizer: PreTrainedTokenizerBase) -> Asked:
    """A prompt with a direction, encoded."""
    messages: list[Message] = steering.steered(prompt.messages, direction)
    record = dataclasses.replace(prompt, messages=messages)
    return Asked(record, encode_prompt(tokenizer, messages), (), plain=prompt, direction=direction)
