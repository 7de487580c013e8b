"""The command line of the stage and everything about it that can be checked before a model is built."""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from step3_dpo.algorithms.modpo import MARGIN, PAIRS
from step3_dpo.frozen import Margin, MarginModel
from step3_dpo.methods import METHODS, method_named, method_of, reads_margins
from step3_dpo.objectives import OF_PROMPTS, OF_RATINGS, PairObjective, named_data
from utils.cli.arguments import (
    OF_THE_RANKS,
    Parser,
    add_actor_argument,
    add_checkpoint_arguments,
    add_deepspeed_arguments,
    add_dry_run_arguments,
    add_epoch_arguments,
    add_fitting_arguments,
    add_loading_arguments,
    add_logits_argument,
    add_optimization_arguments,
)
from utils.cli.free_flags import add_free
from utils.cli.lora_arguments import add_lora_arguments, set_lora_defaults
from utils.cli.types import by_name, named_number, named_value, positive_float, safe_name
from utils.combining.algorithm import Algorithm, LossLevel, add_options, build, checked, options_of
from utils.combining.arguments import (
    add_algorithm_argument,
    add_logging_arguments,
    add_scope_argument,
    add_weight_arguments,
    check_method_options,
    own_method_of,
    settle_method,
)
from utils.models.checking import check_causal_lm
from utils.models.configs import allow, load_tokenizer, same_tokenizer
from utils.process.distributed import print_main
from utils.process.errors import Problems, UserError
from utils.scoring.objectives import add_score_arguments, declared_objectives

DEFAULT_BETA = 0.1
MARGIN_FLAGS = {"reward": "margin_reward", "cost": "margin_cost", "function": "margin_function"}
MARGIN_KINDS = {
    "reward": "modpo: an objective whose margin is that of a score model",
    "cost": "modpo: an objective whose margin is that of a cost model, negated",
    "function": "modpo: an objective whose margin is that of a function (prompts, responses) -> values",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Step 3 on preference pairs, without sampling: DPO on several objectives, MODPO, GAPO on DPO.",
        facts=OF_THE_RANKS,
    )
    methods = [*METHODS.values(), *own_method_of(argv, method_named)]
    add_objective_arguments(parser)
    group = parser.add_argument_group("how the objectives combine")
    add_algorithm_argument(group, METHODS, methods)
    add_weight_arguments(group, methods)
    add_margin_arguments(parser)
    group = parser.add_argument_group("which gradients are compared")
    add_scope_argument(group)
    add_logging_arguments(group)
    add_epoch_arguments(parser.add_argument_group("training"), "pairs a rank and step")
    add_lora_arguments(parser, "policy and reference")
    add_memory_arguments(parser)
    add_optimization_arguments(parser)
    add_checkpoint_arguments(parser, 200, "optimizer steps")
    add_loading_arguments(parser)
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    add_options(parser.add_argument_group("options of one method"), methods)
    args = parser.parse_args(argv)
    allow(args)
    settle_method(args, method_of(args), METHODS, parser.from_file)
    set_lora_defaults(args)
    return args


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and objectives")
    add_actor_argument(group)
    group.add_argument(
        "--objective",
        type=named_data,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME=DATA[:LABEL]",
        help="an objective and the pairs that it orders: PATH_OR_NAME[:fraction][,...] as of other stages' --data, and"
        f" by which of the data's preferences: better (default), safer, {OF_RATINGS}ATTRIBUTE (of two replies to a"
        f" prompt the one rated higher; with - before ATTRIBUTE, lower), or {OF_PROMPTS} (one reply to two prompts,"
        " MAPL); several may name one file",
    )
    group.add_argument(
        "--validation_objective",
        type=named_data,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=DATA[:LABEL]",
        help="held-out pairs of every objective; without it, --validation_fraction of all pairs, by prompt",
    )
    group.add_argument(
        "--monitor",
        type=safe_name,
        nargs="+",
        default=[],
        metavar="NAME",
        help="of these objectives' pairs only log how the policy orders them, do not optimize",
    )
    group.add_argument(
        "--beta",
        type=beta,
        nargs="+",
        default=[str(DEFAULT_BETA)],
        metavar="B",
        help="β: of all objectives, and NAME=B of one",
    )
    group.add_argument(
        "--loss_scale",
        type=named_number,
        nargs="+",
        default=[],
        metavar="NAME=S",
        help="multiply an objective's loss in training; logs stay as they are",
    )
    add_fitting_arguments(group)


def beta(text: str) -> str:
    """argparse type of `B` and `NAME=B`: the word, see `parse_beta`."""
    try:
        parse_beta(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither B nor NAME=B") from None
    return text


def parse_beta(text: str) -> tuple[str | None, float]:
    """The name, if there is one, and β. Raises ValueError or ArgumentTypeError where it is none."""
    name, value = named_value(text) if "=" in text else (None, text)
    return name, positive_float(value)


def add_margin_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("margins (MODPO)")
    group.add_argument(
        "--margin_model",
        type=named_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help="modpo: an objective whose margin is β (log π − log π₀) of this policy, aligned to it from --actor_model;"
        " may be repeated",
    )
    add_score_arguments(group, MARGIN_FLAGS, MARGIN_KINDS)


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--reference_log_probs",
        choices=("kept", "per_batch"),
        default="kept",
        help="those of the pairs: one number a pair, computed before training and kept in <output_dir> until it is"
        " finished, so that no reference is in memory; or computed batch by batch by a frozen reference",
    )
    add_free(
        group,
        "--frozen_dir",
        metavar="DIR",
        help="keep here what the reference and margins say of the pairs, for further runs on the same pairs and models;"
        " all machines have to see it; by default it is in <output_dir>/frozen until the run is finished",
    )
    add_logits_argument(group)


# --- margins


def margins_of(args: argparse.Namespace, objectives: Sequence[PairObjective], problems: Problems) -> list[Margin]:
    """The objectives that have margins.

    Problems: a method that reads none, a name given twice, or of an objective that is trained on its pairs; see
    `check_margin`.
    """
    betas = betas_of(args)
    margins: list[Margin] = [
        MarginModel(name, path, betas.get(name) or recorded_beta(path, name) or betas[None])
        for name, path in args.margin_model
    ]
    margins += declared_objectives(args, problems, MARGIN_FLAGS, needed=False)
    if margins and not reads_margins(args):
        problems.add(f"{margins[0].flag}: --algorithm {args.algorithm} reads no margins (modpo does)")
    names = [margin.name for margin in margins]
    for margin in margins:
        if names.count(margin.name) > 1:
            problems.add(f"{margin.flag}: the objective has another margin")
        if any(each.name == margin.name and each.optimized for each in objectives):
            problems.add(
                f"{margin.flag}: {margin.name} has a margin, and pairs that are trained on: --monitor {margin.name}"
                " only logs how they are ordered"
            )
    tokenizer = problems.take(load_tokenizer, args.actor_model, "--actor_model")
    return [margin for margin in margins if problems.passes(check_margin, margin, tokenizer, args)]


def recorded_settings(path: str) -> dict[str, Any]:
    """The settings that a policy of this project was trained with; {} where none are there."""
    file = Path(path) / "args.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def recorded_beta(path: str, name: str) -> float | None:
    """β of an objective in the training of a policy; None where it is not known."""
    words = recorded_settings(path).get("beta")
    try:
        return beta_of({None: DEFAULT_BETA} | dict(map(parse_beta, words)), name) if words else None
    except (TypeError, AttributeError, ValueError, argparse.ArgumentTypeError):  # a file of something else
        return None


def note_margins(args: argparse.Namespace, margins: Sequence[Margin]) -> None:
    """Say what β implicit margins have, and where one cannot be what it should be; or that there are no margins."""
    if reads_margins(args) and not margins:
        print_main(f"note: --algorithm {args.algorithm}: without margins it is dpo")
    for margin in margins:
        if not isinstance(margin, MarginModel):
            continue
        print_main(f"{margin.flag}: β {margin.beta:g}")
        start = recorded_settings(margin.path).get("actor_model")
        if start and os.path.realpath(start) != os.path.realpath(args.actor_model):
            print_main(f"note: {margin.flag}: was trained from {start}, not from --actor_model {args.actor_model}")


def check_margin(margin: Margin, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> None:
    """Raises: UserError: no such model or function, or a policy with another vocabulary than that which is trained."""
    if not isinstance(margin, MarginModel):
        margin.check()
        return
    check_causal_lm(margin.path, margin.flag)
    if not same_tokenizer(load_tokenizer(margin.path, margin.flag), tokenizer):
        raise UserError(
            f"{margin.flag} {margin.path}: its tokenizer is another one than that of --actor_model {args.actor_model};"
            " a policy aligned from that has the same"
        )


# --- β and scales


def betas_of(args: argparse.Namespace) -> dict[str | None, float]:
    """`--beta` by name; None: of all others."""
    return {None: DEFAULT_BETA} | dict(map(parse_beta, args.beta))


def beta_of(betas: dict[str | None, float], name: str) -> float:
    return betas.get(name, betas[None])


def check_numbers(
    args: argparse.Namespace, objectives: Sequence[PairObjective], margins: Sequence[Margin], problems: Problems
) -> None:
    """Problems: β or a scale of no objective, or given twice; a scale that is not positive."""
    known = [objective.name for objective in objectives]
    implicit = [margin.name for margin in margins if isinstance(margin, MarginModel)]
    given = [name for name, _ in map(parse_beta, args.beta)]
    for name in dict.fromkeys(given):
        shown = "" if name is None else f" {name}"
        if given.count(name) > 1:
            problems.add(f"--beta{shown}: is given twice")
        if name is not None and name not in (*known, *implicit):
            problems.add(f"--beta{shown}: no such objective (there are {', '.join([*known, *implicit])})")
    optimized = [objective.name for objective in objectives if objective.optimized]
    for name, scale in (problems.take(by_name, "--loss_scale", args.loss_scale) or {}).items():
        if name not in optimized:
            problems.add(f"--loss_scale {name}: no objective that is optimized (there are {', '.join(optimized)})")
        if not 0 < scale < math.inf:
            problems.add(f"--loss_scale {name}={scale:g}: must be positive")


# --- the method


def algorithm_of(
    args: argparse.Namespace, objectives: Sequence[PairObjective], margins: Sequence[Margin], problems: Problems
) -> Algorithm | None:
    """The method for the optimized objectives and those with margins; None where flags do not fit together."""
    method = method_of(args)
    check_method_options(args, method, METHODS, problems)
    names = [objective.name for objective in objectives if objective.optimized]
    kinds = [PAIRS] * len(names)
    if reads_margins(args):
        names += [margin.name for margin in margins]
        kinds += [MARGIN] * len(margins)
    if not names:
        return None
    if any(getattr(method, name) is not getattr(Algorithm, name) for name in ("observe", "observe_advantages")):
        problems.add(f"--algorithm {args.algorithm}: observes scores or advantages; pairs have none")
    for name, _ in args.preference:
        if name not in names and name in args.monitor and reads_margins(args):
            problems.add(f"--preference {name}: has neither pairs that are trained on nor a margin (--margin_model)")
    preference = problems.take(by_name, "--preference", args.preference) if method.reads_preference else {}
    return problems.take(built, method, names, kinds, preference, options_of(method, args), args.normalize_coefficients)


def built(method: type[Algorithm], *arguments: Any) -> Algorithm:
    """`utils.combining.algorithm.build`, whose weights, if they are known, are those of its losses.

    Raises:
        UserError: see there; they are of another shape, or negative.
    """
    algorithm = build(method, *arguments)
    if isinstance(algorithm, LossLevel):
        weights = checked(algorithm.weights, [len(algorithm.losses)], algorithm, "weights")
        if not (weights >= 0).all():
            raise UserError(f"--algorithm {method.name}: weights returns {weights.tolist()}: some are negative")
    return algorithm
