"""The named objectives of a run: data, not code. Nothing outside the benchmark knows what any of them means."""

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from utils.cli.free_flags import add_free
from utils.cli.plugins import function_fingerprint
from utils.cli.types import named_value, non_negative_int, seconds
from utils.models.configs import load_config
from utils.models.fingerprint import model_facts
from utils.process.errors import AT_ONCE, Problems, UserError
from utils.scoring.armorm_format import is_armorm
from utils.scoring.reward_functions import Retries, RewardFunction, load_reward_function
from utils.scoring.score_models import ScoreModel, Use, check_score_model, load_score_models, shares_tokens_of

KINDS = {
    "reward": "an objective and its model (value = score, centered)",
    "cost": "an objective and its model (value = -cost)",
    "function": "an objective and its function (prompts, responses) -> values, higher is better",
}
Flags = Mapping[str, str]
FLAGS = {"reward": "reward_model", "cost": "cost_model", "function": "reward_function"}
CHOICES = {
    "label": "of an objective's model with several labels the one whose logit is the score, by index or name",
    "template": "a chat template (Jinja) for an objective's model, in place of its tokenizer's",
}  # how a score model is read
OBJECTIVE_FLAGS = (*FLAGS.values(), *(f"score_{choice}" for choice in CHOICES))
NONE_GIVEN = "--reward_model/--cost_model: at least one objective is needed (or a --reward_function)"


@dataclass(frozen=True)
class Condition:
    """When an objective's score counts: where that of another one is `least` at least, in original units."""

    other: str
    least: float


@dataclass(frozen=True)
class Objective:
    """One named thing to improve, higher is better.

    Attributes:
        kind: "reward", "cost" or "function".
        path: folder or hub name of its score model; module:function of a function.
        label: index or name of the label of a score model with several.
        template: file of its chat template, in place of its tokenizer's.
        scale: factor on the value during training (1 except in experiments on scale).
        condition: under which its score counts in training; it is 0 elsewhere.
        optimized: False for objectives that are scored and logged only.
        retries: of a function that fails.
        flags: {kind: what the flag of such an objective is called}.
    """

    name: str
    kind: str
    path: str
    label: str | None = None
    template: str | None = None
    scale: float = 1.0
    condition: Condition | None = None
    optimized: bool = True
    retries: Retries = Retries()
    flags: Flags = field(default_factory=lambda: FLAGS, compare=False)

    @property
    def flag(self) -> str:
        return f"--{self.flags[self.kind]} {self.name}"

    @property
    def is_function(self) -> bool:
        return self.kind == "function"

    @property
    def zero_divides(self) -> bool:
        """Whether 0 divides harmless from harmful: for costs, unless stage 2 had no safety labels to learn it from."""
        return self.kind == "cost" and getattr(load_config(self.path, self.flag), "zero_divides", True)

    @property
    def has_gate(self) -> bool:
        """Whether its score is what a model's gate makes of several attributes."""
        return not self.is_function and self.label is None and is_armorm(load_config(self.path, self.flag))

    def check(self) -> None:
        """Raises: UserError: no such function, or one that takes other arguments, or see `check_score_model`."""
        if self.is_function:
            self.load_function()
        else:
            check_score_model(self.path, self.flag, self.kind, self.label, self.template)

    def load_function(self) -> RewardFunction:
        """The function of an objective that is one."""
        return load_reward_function(self.path, self.flag, self.retries)

    def load_model(self, dtype: torch.dtype = torch.float32) -> ScoreModel:
        """The score model of any other objective."""
        return load_models([self], dtype)[0]

    @property
    def source(self) -> tuple[str, ...]:
        """What is the same for objectives that can share a model, or for none."""
        if self.is_function:
            return (self.kind, self.name)
        folder = os.path.realpath(self.path) if os.path.isdir(self.path) else self.path
        return ("model", folder, self.template or "")

    def shares_tokens_of(self, policy_tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the objective's model has a value for every token of the policy, so that it can start a critic."""
        return shares_tokens_of(policy_tokenizer, self.path, self.flag, self.template)

    def facts(self) -> dict[str, str]:
        """Fingerprints of what the values depend on; see `model_facts`."""
        if self.is_function:
            return {self.flag: function_fingerprint(self.path, self.flag)}
        return model_facts(self.path, self.flag) | self.template_facts()

    def template_facts(self) -> dict[str, str]:
        """sha256 of the chat template, if a file gives it."""
        if self.template is None:
            return {}
        return {f"--score_template {self.name}": hashlib.sha256(Path(self.template).read_bytes()).hexdigest()}


def load_models(objectives: Sequence[Objective], dtype: torch.dtype = torch.float32) -> list[ScoreModel]:
    """The score models of objectives of one `source`, which share what is loaded once."""
    uses = [Use(objective.flag, objective.kind, objective.label) for objective in objectives]
    return load_score_models(objectives[0].path, uses, objectives[0].template, dtype)


def by_source(objectives: Sequence[Objective]) -> list[list[Objective]]:
    """Objectives with those whose model they share, in the order given."""
    groups: dict[tuple[str, ...], list[Objective]] = {}
    for objective in objectives:
        groups.setdefault(objective.source, []).append(objective)
    return list(groups.values())


def add_score_arguments(
    parser: argparse._ActionsContainer, flags: Flags = FLAGS, kinds: Mapping[str, str] = KINDS
) -> None:
    """`--reward_model`, `--cost_model`, `--reward_function`, for any number of objectives each, and how to use them.

    Args:
        flags: other names of these; kinds: what they are, for --help.
    """
    for kind, what in kinds.items():
        parser.add_argument(
            f"--{flags[kind]}",
            type=named_value,
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME=MODULE:FUNCTION" if kind == "function" else "NAME=PATH",
            help=f"{what}; may be repeated",
        )
    for choice, what in CHOICES.items():
        parser.add_argument(
            f"--score_{choice}",
            type=named_value,
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME=LABEL" if choice == "label" else "NAME=FILE",
            help=what,
        )
    add_free(
        parser,
        "--reward_retries",
        type=non_negative_int,
        default=3,
        metavar="N",
        help="times that a function which raises an exception is called again, before the run ends",
    )
    add_free(
        parser,
        "--reward_retry_wait",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="before the first of these; twice as long before each further one, up to a minute",
    )


def are_given(args: argparse.Namespace) -> bool:
    """Whether the command line names an objective, or says how to read the model of one."""
    return any(getattr(args, flag) for flag in OBJECTIVE_FLAGS)


def named_objectives(args: argparse.Namespace) -> list[Objective]:
    """The objectives of `add_score_arguments`: rewards, costs, functions, each in the order given.

    Raises:
        UserError: see `declared_objectives` and `Objective.check`.
    """
    objectives = declared_objectives(args)
    for objective in objectives:
        objective.check()
    return objectives


def declared_objectives(
    args: argparse.Namespace, problems: Problems = AT_ONCE, flags: Flags = FLAGS, needed: bool = True
) -> list[Objective]:
    """The same before anyone has looked at their models and functions.

    Args:
        flags: what they are given by; needed: whether there has to be one.

    Problems: none, a name given twice, a label or template of no model.
    """
    labels, templates = dict(args.score_label), dict(args.score_template)
    retries = Retries(args.reward_retries, args.reward_retry_wait)
    objectives = [
        Objective(name, kind, path, retries=retries, flags=flags)
        if kind == "function"
        else Objective(name, kind, path, labels.get(name), templates.get(name), flags=flags)
        for kind, flag in flags.items()
        for name, path in getattr(args, flag)
    ]
    if not objectives and needed:
        problems.add(NONE_GIVEN)
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            given = "/".join(f"--{flag}" for flag in flags.values())
            problems.add(f"{given}: the objective {name} is given twice")
    for choice in CHOICES:
        problems.take(check_choices, f"--score_{choice}", getattr(args, f"score_{choice}"), objectives)
    return objectives


def check_choices(flag: str, choices: list[tuple[str, str]], objectives: list[Objective]) -> None:
    """Raises: UserError: a label or template given twice, or for something other than a score model."""
    models = [objective.name for objective in objectives if not objective.is_function]
    for name, value in choices:
        if name not in models:
            there = f"there are {', '.join(models)}" if models else "there are only functions"
            raise UserError(f"{flag} {name}={value}: no objective with such a model ({there})")
        if [given for given, _ in choices].count(name) > 1:
            raise UserError(f"{flag} {name}: is given twice")
