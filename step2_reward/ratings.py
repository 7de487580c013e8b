"""Score models with an output for every attribute that replies are rated on: one trunk, m regressions.

The multi-label models of DPA and of multi-objective GRPO. Each attribute is standardised on the training set, so that
no scale counts for more than another, and so that a label can be an objective of step 3 as it is.
"""

import argparse
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch

from step2_reward import regression
from step2_reward.losses import rating_loss
from step2_reward.training import ScoreTraining
from utils.data.encoding import Encoded
from utils.data.loading import load_view
from utils.data.ratings import RatingsView, add_attributes_argument, attributes_of, check_rated, named_attributes
from utils.process.distributed import print_main
from utils.process.errors import UserError
from utils.process.rank_watch import beat
from utils.supervised.examples import Examples, Read
from utils.supervised.steps import per_example


def add_rating_arguments(parser: argparse.ArgumentParser) -> None:
    """What a score model of ratings is trained on."""
    group = parser.add_argument_group("ratings (kind ratings)")
    add_attributes_argument(
        group,
        "attributes to learn, an output each; columns of any such name too; a rating out of range is an error (default:"
        " all that the data rates)",
    )


class RatingTraining(ScoreTraining):
    """Squared error over what is rated.

    Attributes:
        mean, std: of each attribute's ratings in the training set; [m] float64.
    """

    shown: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.attributes = named_attributes(args.attributes)

    def load(self, spec: str, seed: int) -> Read:
        """Raises: UserError: an attribute that no reply is rated on; see `RatingsView`."""
        records, summary = self.load_held_out(spec, seed)
        check_rated(records, self.attributes, spec)
        return records, summary

    def load_held_out(self, spec: str, seed: int) -> Read:
        return load_view(spec, RatingsView(attributes=self.attributes), seed)

    def take_note(self, train: Examples) -> None:
        names = [each.name for each in self.attributes] or attributes_of(example.record for example in train)
        if self.args.dry_run:  # which has seen a sample
            return
        counts = [sum(name in example.record.ratings for example in train) for name in names]
        rated = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        print_main(f"attributes, and replies that are rated on them: {rated}")

    def settle(self, train: Examples, held_out: Examples) -> None:
        """Raises: UserError: an attribute with ratings of one value, which has no spread to divide by; nothing to
        validate on."""
        self.labels = tuple(each.name for each in self.attributes) or tuple(attributes_of(e.record for e in train))
        means, stds = [], []
        for name in self.labels:
            values = numpy.array([e.record.ratings[name] for e in train if name in e.record.ratings])
            if len(values) == 0 or values.std() == 0:
                found = f"all {len(values)} ratings to train on are {values[0]:g}" if len(values) else "none is left"
                raise UserError(f"--attributes {name}: {found}; there is nothing to learn")
            means.append(values.mean())
            stds.append(values.std())
        self.mean, self.std = numpy.array(means), numpy.array(stds)
        if not any(map(self.units, held_out)):
            raise UserError(f"--validation_data: no held-out reply is rated on {', '.join(self.labels)}")

    def describe(self, config: Any) -> None:
        """Also the mean and the spread that the outputs are measured in."""
        super().describe(config)
        config.rating_mean, config.rating_std = self.mean.tolist(), self.std.tolist()
        config.zero_divides = False  # where an attribute serves as a cost

    def targets(self, examples: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised ratings, and 1 where there is one; [b, m] float32 each."""
        missing = float("nan")
        raw = [[example.record.ratings.get(name, missing) for name in self.labels] for example in examples]
        ratings = torch.from_numpy((numpy.array(raw) - self.mean) / self.std).float()
        return ratings.nan_to_num(0.0), ratings.isnan().logical_not().float()

    def units(self, example: Encoded) -> int:
        """The ratings that an example has."""
        return sum(name in example.record.ratings for name in self.labels)

    def measures(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        scores = self.scores(examples)[:, 0]  # [b, m]
        return {"loss": rating_loss(scores, *(each.to(scores.device) for each in self.targets(examples)))}

    def validate(self, held_out: Examples) -> dict[str, float]:
        """The mean loss of a rating, and each attribute's."""
        batch_size = self.args.per_device_eval_batch_size
        scores = per_example(self.engine, held_out, batch_size, lambda batch: self.scores(batch)[:, 0])[:, :-1]
        ratings, rated = (each.double() for each in self.targets(held_out))
        errors = torch.where(rated.bool(), (scores - ratings).square(), 0.0)  # [n, m]
        figures = {"loss": (errors.sum() / rated.sum()).item()}
        for name, error, count in zip(self.labels, errors.sum(dim=0), rated.sum(dim=0), strict=True):
            if count:
                figures[f"loss_{name}"] = (error / count).item()
        return figures

    def evaluate(self, held_out: Examples) -> dict[str, Any]:
        """Of each attribute: RMSE in its own units, Pearson's and Spearman's correlations, calibration."""
        predicted = self.score_table(held_out)[:, 0].numpy() * self.std + self.mean  # [n, m]
        figures = {}
        for column, name in enumerate(self.labels):
            rated = numpy.array([name in example.record.ratings for example in held_out])
            ratings = numpy.array([e.record.ratings[name] for e in held_out if name in e.record.ratings])
            beat("figures of the attributes")
            if len(ratings) > 1:
                figures[name] = regression.figures(predicted[rated, column], ratings, self.args.seed)
        return {"objective": self.args.objective, "kind": "ratings", "replies": len(held_out), "attributes": figures}

    def lines(self, evaluation: dict[str, Any]) -> list[str]:
        return regression.table_lines(evaluation["attributes"])

    def plot(self, evaluation: dict[str, Any], path: Path) -> None:
        regression.plot(evaluation["attributes"], path)
