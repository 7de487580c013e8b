"""Binary judges: what a response must pass, whatever it scores (CGPO, arXiv 2409.20370).

A judge passes a response, fails it, or does not judge it. It is a rule, that is, a function of prompts and responses
that returns True, False or None for each, or a threshold on the value of an objective, or what a program can check of
the instructions in a prompt, or a language model (`utils.scoring.model_judges`).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from utils.cli.plugins import function_fingerprint
from utils.cli.types import condition, named_value
from utils.data.records import Prompt
from utils.instructions import Instruction
from utils.process.errors import AT_ONCE, Problems, UserError
from utils.process.rank_watch import beat
from utils.scoring.model_judges import add_model_judge_arguments, model_judges_of
from utils.scoring.reward_functions import Retries, RewardFunction, load_reward_function
from utils.scoring.scorers import Scored, function_values
from utils.scoring.verdicts import ALL, Judge, Replies, Verdicts


@dataclass(frozen=True)
class RuleJudge(Judge):
    """A function (prompts, responses) -> truth values."""

    name: str
    spec: str
    function: RewardFunction

    def verdicts(self, replies: Replies, scored: Mapping[str, Scored], rows: Sequence[int]) -> Verdicts:
        """Call the function once for the responses that it is asked of.

        Raises:
            UserError: see `RewardFunction`.
        """
        beat(f"calling the judge {self.name}")
        asked = replies.some(rows)
        found = function_values(self.function, asked.prompts, asked.responses) if rows else ([], [])
        return Verdicts(*(replies.spread(column, rows) for column in found))

    def facts(self) -> dict[str, str]:
        """A fingerprint of what its verdicts depend on."""
        return {f"--judge {self.name}": function_fingerprint(self.spec, f"--judge {self.name}")}

    def try_out(self, prompts: Sequence[Prompt]) -> None:
        """Raises: UserError: the function fails for the first prompt."""
        self.function.try_out(prompts[0])


@dataclass(frozen=True)
class ThresholdJudge(Judge):
    """Passes a response whose value of an objective is `least` at least; higher is better, of a cost its negative."""

    name: str
    objective: str
    least: float

    def verdicts(self, replies: Replies, scored: Mapping[str, Scored], rows: Sequence[int]) -> Verdicts:
        """By the values that its objective has given them."""
        found = scored[self.objective]
        judged = found.judged * replies.spread(torch.ones(len(rows)), rows)
        return Verdicts((found.values >= self.least).float() * judged, judged)

    def facts(self) -> dict[str, str]:
        """What its verdicts depend on, beside the objective."""
        return {f"--judge {self.name}": f"{self.objective}:{self.least:g}"}


@dataclass(frozen=True)
class InstructionJudge(Judge):
    """Passes a response that meets all instructions of its prompt's row; without any, it does not judge it."""

    name: str

    def verdicts(self, replies: Replies, scored: Mapping[str, Scored], rows: Sequence[int]) -> Verdicts:
        """By the checks of `utils.instructions`."""
        asked = replies.some(rows)
        instructions = [instructions_of(prompt) for prompt in asked.prompts]
        judged = [own != [] for own in instructions]
        met = [all(e.met_by(text) for e in own) for own, text in zip(instructions, asked.responses, strict=True)]
        passed = [there and kept for there, kept in zip(judged, met, strict=True)]
        return Verdicts(*(replies.spread(torch.tensor(column), rows) for column in (passed, judged)))

    def try_out(self, prompts: Sequence[Prompt]) -> None:
        """Raises: UserError: no prompt has instructions, or one has what is none."""
        if not any([instructions_of(prompt) for prompt in prompts]):
            raise UserError(f"--judge {self.name}={INSTRUCTIONS}: no row of --data has a field 'instructions'")

    def facts(self) -> dict[str, str]:
        """The prompts tell the rest."""
        return {f"--judge {self.name}": INSTRUCTIONS}


def instructions_of(prompt: Prompt) -> list[Instruction]:
    """What a prompt asks that can be checked.

    Raises:
        UserError: its row has something else there.
    """
    return [Instruction.from_dict(each, prompt.source) for each in prompt.instructions]


INSTRUCTIONS = "instructions"


def add_judge_arguments(group: argparse._ActionsContainer) -> None:
    """`--judge`, and those of models as judges."""
    group.add_argument(
        "--judge",
        type=named_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=...",
        help="what a response should pass, whatever it scores: FILE.py:FUNCTION or MODULE:FUNCTION (prompts, responses)"
        " -> True, False or None (not judged) for each; or OBJECTIVE:T, whose value is T at least, in original units, a"
        " cost's with its sign reversed; or instructions, all those in the field of this name of a prompt's row (see"
        " utils/make_prompt_pairs.py). Logged as judge/NAME and, for all judges together, judge/all; losses by task"
        " (--policy_loss) train what passes",
    )
    add_model_judge_arguments(group)


def judges_of(args: argparse.Namespace, objectives: Sequence[str], problems: Problems = AT_ONCE) -> list[Judge]:
    """The judges of `--judge`, in the order given, then those of `--judge_model`.

    Problems: a name given twice, or `all`; an unknown objective; see `load_reward_function` and `model_judges_of`.
    """
    found, names = [], [name for name, _ in (*args.judge, *args.judge_model)]
    for name in dict.fromkeys(names):
        if names.count(name) > 1 or name == ALL:
            problems.add(f"--judge {name}: {'stands for all of them' if name == ALL else 'is given twice'}")
    for name, spec in args.judge:
        found.append(problems.take(judge, name, spec, objectives, Retries(args.reward_retries, args.reward_retry_wait)))
    return [each for each in found if each is not None] + model_judges_of(args, problems)


def judge(name: str, spec: str, objectives: Sequence[str], retries: Retries) -> Judge:
    """What `NAME=...` means.

    Raises:
        UserError: an unknown objective; see `load_reward_function`.
    """
    if spec == INSTRUCTIONS:
        return InstructionJudge(name)
    try:
        objective, least = condition(spec)
    except (ValueError, argparse.ArgumentTypeError):
        function = load_reward_function(spec, f"--judge {name}", retries, as_truth, "truth values")
        return RuleJudge(name, spec, function)
    if objective not in objectives:
        raise UserError(f"--judge {name}={spec}: no such objective (there are {', '.join(objectives)})")
    return ThresholdJudge(name, objective, least)


def as_truth(value: Any) -> float | None:
    """1 or 0 for a truth value; None for none. Raises: TypeError: anything else."""
    if value is None:
        return None
    if not isinstance(value, bool | numpy.bool_):
        raise TypeError(f"{value!r} is not True, False or None")
    return float(value)
