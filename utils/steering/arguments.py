"""`--direction`: where to a steerable policy goes."""

import argparse
from collections.abc import Sequence

from utils.cli.types import by_name, named_number
from utils.models.configs import load_config
from utils.process.errors import UserError
from utils.steering.directions import Direction, Steering, steering_of


def add_direction_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--direction",
        type=named_number,
        nargs="+",
        default=[],
        metavar="NAME=W",
        help="of policies that are steered (step3_dpa): weights of their attributes, of any length; attributes that are"
        " not named weigh 0",
    )


def direction_of(
    path: str, flag: str, weights: Sequence[tuple[str, float]]
) -> tuple[Steering | None, Direction | None]:
    """How a policy is steered, if it is, and the direction that `--direction` names, if it names one.

    Raises:
        UserError: the policy is not steered, or not by these attributes; names `flag`, which named the policy.
    """
    steering = steering_of(load_config(path, flag), f"{flag} {path}")
    if not weights:
        return steering, None
    if steering is None:
        raise UserError(f"--direction: {flag} {path}: is no policy that is steered (step3_dpa makes them)")
    return steering, steering.direction(by_name("--direction", list(weights)), "--direction")
