"""The command line of the stage, and everything about it that can be checked before a model is built."""

import argparse
from collections.abc import Sequence

from utils.cli.arguments import (
    OF_THE_RANKS,
    Parser,
    add_actor_argument,
    add_checkpoint_arguments,
    add_data_arguments,
    add_deepspeed_arguments,
    add_dry_run_arguments,
    add_epoch_arguments,
    add_loading_arguments,
    add_optimization_arguments,
)
from utils.cli.free_flags import add_free
from utils.cli.types import by_name, degrees, named_number, positive_int, temperature
from utils.models.configs import allow
from utils.process.errors import Problems
from utils.scoring.objectives import Objective, add_score_arguments
from utils.steering.directions import MESSAGE, PLACE, Steering

DRAWS = {
    "uniform": "each prompt draws its angle",
    "even": "the angles of all prompts are evenly spread, in random order",
}
STARTS = {
    "last": "the policy of the iteration before",
    "base": "the SFT policy, which learns what the last policy's samples have come to",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Step 3 by rejection sampling: one policy that is steered by directions over the objectives (DPA).",
        facts=OF_THE_RANKS,
    )
    group = parser.add_argument_group("models and attributes")
    add_actor_argument(group)
    add_score_arguments(group)
    group.add_argument(
        "--score_scale",
        type=named_number,
        nargs="+",
        default=[],
        metavar="NAME=S",
        help="multiply an attribute's score before it is weighed; logs stay in original units",
    )
    add_direction_arguments(parser)
    add_data_arguments(parser, "prompts")
    add_sampling_arguments(parser)
    add_iteration_arguments(parser)
    add_epoch_arguments(
        parser.add_argument_group("training, of each iteration"), "dialogues a rank and step", max_length=False
    )
    add_optimization_arguments(parser)
    add_checkpoint_arguments(parser, 200, "optimizer steps")
    add_loading_arguments(parser)
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    args = parser.parse_args(argv)
    allow(args)
    if args.min_angle is None:
        args.min_angle = -args.max_angle
    return args


def add_direction_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("directions")
    group.add_argument(
        "--max_angle",
        type=degrees,
        default=45.0,
        metavar="DEGREES",
        help="largest angle between a direction and the first attribute (of reward models, cost models and functions,"
        " in this order); DPA's is 45",
    )
    group.add_argument(
        "--min_angle",
        type=degrees,
        metavar="DEGREES",
        help="smallest one; where it is negative, the other attributes weigh less than 0; -MAX_ANGLE unless given, as"
        " DPA has it; 0 with --max_angle 90 for all trade-offs between two attributes",
    )
    group.add_argument(
        "--direction_draw",
        choices=tuple(DRAWS),
        default="uniform",
        help="; ".join(f"{name}: {text}" for name, text in DRAWS.items())
        + "; of three and more attributes, the others' shares are drawn, too",
    )
    group.add_argument("--directions_per_prompt", type=positive_int, default=1, metavar="D", help="in each iteration")
    group.add_argument(
        "--message",
        default=MESSAGE,
        metavar="TEXT",
        help=f"the system turn, in which {PLACE} becomes the direction, such as helpfulness*92 + verbosity*38",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rejection sampling")
    group.add_argument(
        "--samples_per_direction", type=positive_int, default=16, metavar="N", help="replies, of which one is kept"
    )
    group.add_argument("--max_prompt_length", type=positive_int, default=256, help="tokens, the direction's included")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, help="tokens of a reply")
    group.add_argument("--temperature", type=temperature, default=1.0, help="sampling temperature")
    group.add_argument(
        "--per_device_prompt_batch_size", type=positive_int, default=16, help="prompts answered at once, N times each"
    )


def add_iteration_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("iterations")
    group.add_argument("--iterations", type=positive_int, default=4, metavar="T", help="of sampling and fine-tuning")
    group.add_argument(
        "--prompts_per_iteration", type=positive_int, metavar="P", help="drawn from the training prompts; default: all"
    )
    group.add_argument(
        "--start",
        choices=tuple(STARTS),
        default="last",
        help="what an iteration fine-tunes; " + "; ".join(f"{name}: {text}" for name, text in STARTS.items()),
    )
    add_free(
        group, "--keep_iterations", action="store_true", help="keep the policies of all iterations, not the last alone"
    )


def check_numbers(args: argparse.Namespace, objectives: Sequence[Objective], problems: Problems) -> None:
    """Problems: fewer than two attributes, angles or a message that make no sense, a scale of no attribute."""
    names = [objective.name for objective in objectives]
    if len(names) == 1:
        problems.add(f"--reward_model/--cost_model: a direction needs two attributes or more (there is {names[0]})")
    if args.min_angle > args.max_angle:
        problems.add(f"--min_angle {args.min_angle:g}: is larger than --max_angle {args.max_angle:g}")
    if PLACE not in args.message:
        problems.add(f"--message {args.message!r}: has no {PLACE}, where the direction goes")
    scales = problems.take(by_name, "--score_scale", args.score_scale) or {}
    for name, scale in scales.items():
        if name not in names:
            problems.add(f"--score_scale {name}: no such attribute (there are {', '.join(names)})")
        elif scale <= 0:
            problems.add(f"--score_scale {name}={scale:g}: not a positive number")
    if args.samples_per_direction == 1:
        problems.add("--samples_per_direction 1: there has to be a choice")


def steering_from(args: argparse.Namespace, objectives: Sequence[Objective]) -> Steering:
    """What the policy is to be steered by."""
    return Steering(tuple(objective.name for objective in objectives), args.message)


def scales_of(args: argparse.Namespace, objectives: Sequence[Objective]) -> list[float]:
    """The factor on each attribute's score."""
    scales = dict(args.score_scale)
    return [scales.get(objective.name, 1.0) for objective in objectives]
