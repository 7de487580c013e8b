"""Reward and cost models: trained on preference pairs, and on prompt pairs beside them (MAPL)."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch

from step2_reward import calibration
from step2_reward.losses import cost_loss, reward_loss
from step2_reward.training import ScoreTraining
from utils.cli.types import non_negative_float, positive_float, positive_int
from utils.data import load_pairs
from utils.data.batching import evenly_spread
from utils.data.encoding import Encoded
from utils.data.loading import load_view
from utils.data.prompt_pairs import PROMPT_PAIRS, PromptPair
from utils.data.ratings import PairsOfRatings, attribute, named_attributes
from utils.data.registry import preference_labels
from utils.data.summaries import ReadingSummary
from utils.process.distributed import print_main
from utils.process.errors import UserError
from utils.supervised.examples import Examples, Read
from utils.supervised.intervals import proportion
from utils.supervised.steps import per_example

PREFERENCE_LABELS = {"reward": "better", "cost": "safer"}  # defaults of --preference_label by kind
OF_RATINGS = ("least_difference", "ties", "pairs_per_prompt")  # flags that serve --pairs_from
OF_PROMPT_PAIRS = ("validation_prompt_pairs", "prompt_pair_weight")
ALL_FLAGS = ("preference_label", "score_regularization", "statistics_pairs", "margin_weight", "pairs_from", *OF_RATINGS,
             "prompt_pairs", *OF_PROMPT_PAIRS)  # fmt: skip
DEFAULTS = {
    None: {"score_regularization": 0.001, "statistics_pairs": 2000, "margin_weight": 0.0},
    "pairs_from": {"least_difference": 0.0, "ties": "drop"},
    "prompt_pairs": {"prompt_pair_weight": 1.0},
}  # of flags, by the flag that they serve


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """What a reward or cost model is trained on."""
    group = parser.add_argument_group("pairs (kinds reward and cost)")
    group.add_argument(
        "--preference_label",
        choices=tuple(preference_labels()),
        help="which of the data's preferences orders a pair (default: better for a reward, safer for a cost)",
    )
    group.add_argument(
        "--score_regularization",
        type=non_negative_float,
        help="weight of the mean square of the scores in the loss (0.001)",
    )
    group.add_argument(
        "--statistics_pairs",
        type=positive_int,
        help="training pairs, evenly spread, that the scores' mean and spread are taken on (2000)",
    )
    group.add_argument(
        "--margin_weight",
        type=non_negative_float,
        help="factor of a pair's margin (the number in its field 'margin', or the difference of two ratings), by which"
        " the scores should differ at least (0: margins do not count)",
    )
    add_arguments_of_ratings(parser)
    add_prompt_pair_arguments(parser)


def add_arguments_of_ratings(parser: argparse.ArgumentParser) -> None:
    """How ratings become pairs."""
    group = parser.add_argument_group("pairs of ratings (kinds reward and cost)")
    group.add_argument(
        "--pairs_from",
        type=attribute,
        metavar="ATTRIBUTE[:low:high]",
        help="--data are ratings (see --kind ratings): of every two replies to a prompt, the one rated higher on this"
        " is the better one (of a cost: the safer one)",
    )
    group.add_argument(
        "--least_difference", type=non_negative_float, metavar="D", help="ratings that differ by less are a tie (0)"
    )
    group.add_argument(
        "--ties",
        choices=("drop", "both"),
        help="leave a tie out, or take the pair in both orders: neither reply is better (drop)",
    )
    group.add_argument(
        "--pairs_per_prompt", type=positive_int, metavar="N", help="at most so many of a prompt, drawn (all)"
    )


def add_prompt_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained on beside pairs of replies."""
    group = parser.add_argument_group("prompt pairs (MAPL; kinds reward and cost)")
    group.add_argument(
        "--prompt_pairs",
        metavar="PATH_OR_NAME[:fraction][,...]",
        help="one reply to two prompts, of which it answers one better (chosen_prompt, rejected_prompt, response; see"
        " utils/make_prompt_pairs.py); trained on beside --data",
    )
    group.add_argument(
        "--validation_prompt_pairs",
        metavar="PATH_OR_NAME[:fraction][,...]",
        help="held-out ones, which --prompt_pairs needs, as it needs --validation_data: their prompts do not tell which"
        " go with which pairs",
    )
    group.add_argument(
        "--prompt_pair_weight",
        type=positive_float,
        metavar="W",
        help="how much a prompt pair weighs in the loss; an ordinary pair weighs 1 (1)",
    )


def settle_pair_arguments(args: argparse.Namespace) -> None:
    """Fill in defaults.

    Raises:
        UserError: flags that do not go together.
    """
    for name in OF_RATINGS:
        if getattr(args, name) is not None and args.pairs_from is None:
            raise UserError(f"--{name}: serves --pairs_from")
    for name in OF_PROMPT_PAIRS:
        if getattr(args, name) is not None and args.prompt_pairs is None:
            raise UserError(f"--{name}: serves --prompt_pairs")
    if args.pairs_from and args.preference_label:
        raise UserError("--pairs_from: orders the pairs, --preference_label does not")
    if args.prompt_pairs and not (args.validation_data and args.validation_prompt_pairs):
        raise UserError("--prompt_pairs: needs --validation_data and --validation_prompt_pairs")
    for served, values in DEFAULTS.items():
        for name, value in values.items() if served is None or getattr(args, served) else ():
            if getattr(args, name) is None:
                setattr(args, name, value)
    if not args.pairs_from:
        args.preference_label = args.preference_label or PREFERENCE_LABELS[args.kind]


class PairTraining(ScoreTraining):
    """A reward (higher is better, Bradley-Terry) or a cost (lower is better, Safe RLHF)."""

    shown: ClassVar[tuple[str, ...]] = ("accuracy",)

    def load(self, spec: str, seed: int) -> Read:
        """Raises: UserError: margins are to count, and there are none."""
        records, summary = self.pairs(spec, seed)
        if self.args.margin_weight and all(record.margin is None for record in records):
            raise UserError(f"--margin_weight: no pair of {spec} has a margin")
        return self.with_prompt_pairs(records, summary, self.args.prompt_pairs, seed)

    def load_held_out(self, spec: str, seed: int) -> Read:
        return self.with_prompt_pairs(*self.pairs(spec, seed), self.args.validation_prompt_pairs, seed)

    def pairs(self, spec: str, seed: int) -> Read:
        """Ordinary pairs, without margins where these do not count: a run does not depend on them then."""
        args = self.args
        records, summary = load_pairs(spec, args.preference_label, seed) if not args.pairs_from else self.rated(spec)
        if not args.margin_weight:
            records = [each if each.margin is None else dataclasses.replace(each, margin=None) for each in records]
        return records, summary

    @staticmethod
    def with_prompt_pairs(records: list[Any], summary: ReadingSummary, spec: str | None, seed: int) -> Read:
        """Pairs, and after them prompt pairs, if there are to be some."""
        if spec is None:
            return records, summary
        more, theirs = load_view(spec, PROMPT_PAIRS, seed)
        summary.sources += theirs.sources
        return records + more, summary

    def rated(self, spec: str) -> Read:
        """Pairs of replies that were rated."""
        args = self.args
        view = PairsOfRatings(
            attributes=named_attributes([args.pairs_from]),
            least=args.least_difference,
            ties=args.ties,
            most=args.pairs_per_prompt,
            seed=args.seed,
        )
        return load_view(spec, view, args.seed)

    def take_note(self, train: Examples) -> None:
        if self.args.kind == "cost" and not has_safety_labels(train):
            print_main("note: no safety labels in --data: the cost is ordered, but its zero divides nothing")
        sides = {example.record.side for example in train if is_prompt_pair(example)}
        if len(sides - {None}) == 1:
            (side,) = sides - {None}
            print_main(
                f"note: --prompt_pairs: only {side} replies of the pairs they were made from; MAPL takes both sides,"
                " else a score can learn that replies of this kind follow longer prompts"
            )

    def settle(self, train: Examples, held_out: Examples) -> None:
        """Raises: UserError: prompt pairs alone are left, of which no accuracy of pairs can be told."""
        for flag, side in (("--data", train), ("--validation_data", held_out)):
            if all(map(is_prompt_pair, side)):
                raise UserError(f"{flag}: no pair of replies is left beside the prompt pairs")

    def units(self, example: Encoded) -> float:
        """1, or the weight of a prompt pair."""
        return self.args.prompt_pair_weight if is_prompt_pair(example) else 1

    def measures(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        """Loss and whether the order is right, by their weights."""
        loss, right = self.losses(examples)
        if self.args.prompt_pairs is not None:
            weights = torch.tensor([float(self.units(example)) for example in examples], device=loss.device)
            loss, right = weights * loss, weights * right
        return {"loss": loss, "accuracy": right}

    def losses(self, examples: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each example, and 1 where the scores order it as the data does; [b] each."""
        chosen, rejected = self.scores(examples).squeeze(-1).unbind(dim=1)
        margin = torch.tensor([self.margin(example) for example in examples], device=chosen.device)
        regularization = self.args.score_regularization
        if self.args.kind == "reward":
            return reward_loss(chosen, rejected, regularization, margin), (chosen > rejected).float()
        signs = torch.tensor([harm_signs(example) for example in examples], device=chosen.device)
        loss = cost_loss(chosen, rejected, *signs.unbind(dim=1), regularization, margin)
        return loss, (chosen < rejected).float()

    def margin(self, example: Encoded) -> float:
        """By how much the scores of a pair should differ at least."""
        return self.args.margin_weight * (getattr(example.record, "margin", None) or 0.0)

    def validate(self, held_out: Examples) -> dict[str, float]:
        """The mean loss by weight, and accuracies of ordinary and of prompt pairs."""
        batch_size = self.args.per_device_eval_batch_size
        table = per_example(
            self.engine, held_out, batch_size, lambda batch: torch.stack(self.losses(batch), dim=1)
        )  # [n, 3]
        prompts = torch.tensor([is_prompt_pair(example) for example in held_out])
        weights = torch.tensor([float(self.units(example)) for example in held_out], dtype=torch.float64)
        figures = {"loss": ((weights * table[:, 0]).sum() / weights.sum()).item()}
        for name, which in (("accuracy", ~prompts), ("prompt_pair_accuracy", prompts)):
            if which.any():
                figures[name] = table[which, 1].mean().item()
        return figures

    def finish(self, config: Any, train: Examples) -> None:
        """Mean and spread of the scores; of a cost, what its zero is."""
        pairs = [example for example in train if not is_prompt_pair(example)]
        scores = self.score_table(evenly_spread(pairs, self.args.statistics_pairs)).numpy()
        config.score_mean, config.score_std = float(scores.mean()), float(scores.std())
        if self.args.kind == "cost":
            config.zero_divides = has_safety_labels(pairs)

    def evaluate(self, held_out: Examples) -> dict[str, Any]:
        """Accuracy and calibration."""
        args = self.args
        pairs = [example for example in held_out if not is_prompt_pair(example)]
        scores = self.score_table(pairs).squeeze(-1).numpy()
        chosen, rejected = (scores if args.kind == "reward" else -scores).T
        result = {
            "objective": args.objective,
            "kind": args.kind,
            "preference_label": args.preference_label or args.pairs_from,
            "pairs": len(pairs),
            "accuracy": proportion(calibration.pairwise_hits(chosen, rejected)),
            "calibration": calibration.pair_calibration(chosen, rejected, args.seed),
        }
        if args.kind == "cost":
            signs = numpy.array([harm_signs(pair) for pair in pairs])
            result |= calibration.sign_figures(scores.flatten(), signs.flatten(), args.seed) or {}
        return result | self.evaluate_prompt_pairs([example for example in held_out if is_prompt_pair(example)])

    def evaluate_prompt_pairs(self, examples: list[Encoded]) -> dict[str, Any]:
        """Accuracy on prompt pairs, of all and of the replies of either side of a pair."""
        if not examples:
            return {}
        scores = self.score_table(examples).squeeze(-1).numpy()
        chosen, rejected = (scores if self.args.kind == "reward" else -scores).T
        hits = calibration.pairwise_hits(chosen, rejected)
        sides = numpy.array([str(example.record.side) for example in examples])
        figures = {f"prompt_pairs_{side}": hits[sides == side] for side in ("chosen", "rejected")}
        figures = {"prompt_pairs": hits, **figures}
        return {name: proportion(part) for name, part in figures.items() if len(part)}

    def lines(self, evaluation: dict[str, Any]) -> list[str]:
        """Each figure with its 95% interval and number of cases."""
        names = {
            "accuracy": "pairwise accuracy",
            "calibration": "calibration error",
            "sign_accuracy": "sign accuracy",
            "sign_calibration": "calibration error of the sign",
            "prompt_pairs": "accuracy on prompt pairs",
            "prompt_pairs_chosen": "of chosen replies",
            "prompt_pairs_rejected": "of rejected replies",
        }
        return [calibration.figure_line(name, evaluation[key]) for key, name in names.items() if key in evaluation]

    def plot(self, evaluation: dict[str, Any], path: Path) -> None:
        """Reliability diagrams."""
        titles = {"calibration": "order of a pair", "sign_calibration": "harmful or safe"}
        name = evaluation["objective"]
        panels = {f"{name}: {title}": evaluation[key] for key, title in titles.items() if key in evaluation}
        calibration.plot(panels, path)


def is_prompt_pair(example: Encoded) -> bool:
    """Whether it is one reply to two prompts."""
    return isinstance(example.record, PromptPair)


def has_safety_labels(pairs: list[Encoded]) -> bool:
    """Whether a cost learns which responses are harmful, and not only which of two is more so."""
    return any(sign for pair in pairs for sign in harm_signs(pair))


def harm_signs(pair: Encoded) -> tuple[int, int]:
    """Safety labels of (chosen, rejected): +1 harmful, −1 safe, 0 unknown, as for a prompt pair."""
    if is_prompt_pair(pair):
        return 0, 0
    labels = pair.record.chosen_safe, pair.record.rejected_safe
    return tuple(0 if safe is None else -1 if safe else 1 for safe in labels)
