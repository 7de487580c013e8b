"""The named objectives of a run: data, not code. Nothing outside the benchmark knows what any of them means."""

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from utils.arguments import named_value
from utils.errors import UserError
from utils.models import check_score_model

KINDS = ("reward", "cost")


@dataclass(frozen=True)
class Objective:
    """One named thing to improve, higher is better.

    Attributes:
        kind: "reward" or "cost".
        path: folder or hub name of its score model.
        scale: factor on the value during training (1 except in experiments on scale).
        optimized: False for objectives that are scored and logged only.
    """

    name: str
    kind: str
    path: str
    scale: float = 1.0
    optimized: bool = True

    @property
    def flag(self) -> str:
        return f"--{self.kind}_model {self.name}"

    def sign_and_offset(self, config: Any) -> tuple[float, float]:
        """How the objective follows from the score of its model: value = sign · score + offset.

        A reward is centered by the mean stored in the model's configuration (Bradley-Terry leaves the origin
        free); a cost keeps its origin, which divides safe from harmful, and changes its sign.
        """
        return (1.0, -getattr(config, "score_mean", 0.0)) if self.kind == "reward" else (-1.0, 0.0)

    def values(self, scores: torch.Tensor, config: Any) -> torch.Tensor:
        """Scores of its model -> objective values in original units; any shape."""
        sign, offset = self.sign_and_offset(config)
        return sign * scores + offset


def add_score_model_arguments(parser: argparse._ActionsContainer) -> None:
    """`--reward_model NAME=PATH` and `--cost_model NAME=PATH`, each for any number of objectives."""
    values = {"reward": "value = score, centered", "cost": "value = -cost"}
    for kind in KINDS:
        parser.add_argument(
            f"--{kind}_model",
            type=named_value,
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME=PATH",
            help=f"an objective and its {kind} model ({values[kind]}); may be repeated",
        )


def named_objectives(args: argparse.Namespace) -> list[Objective]:
    """The objectives of `add_score_model_arguments`, rewards first, in the order given.

    Raises:
        UserError: none, a name given twice, or a folder that holds no score model.
    """
    objectives = [Objective(name, kind, path) for kind in KINDS for name, path in getattr(args, f"{kind}_model")]
    if not objectives:
        raise UserError("--reward_model/--cost_model: at least one objective is needed")
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--reward_model/--cost_model: the objective {name} is given twice")
    for objective in objectives:
        check_score_model(objective.path, objective.flag)
    return objectives
