"""From ratings to rewards: which attributes, their scales, their regressions, and verbosity taken out of them."""

import argparse
from dataclasses import dataclass

import numpy

from step2_reward.armorm import debias, ridge
from step2_reward.armorm.states import KeptStates
from utils.cli.types import positive_float
from utils.data.ratings import Attribute, add_attributes_argument, attributes_of, named_attributes
from utils.output.metrics import Progress
from utils.process.distributed import is_main, print_main
from utils.process.errors import UserError
from utils.process.rank_watch import beat
from utils.supervised.examples import Examples

NONE = "none"
VERBOSITY = "verbosity"  # how the name of the attribute ends that is taken out, unless said otherwise


@dataclass(frozen=True)
class Attributes:
    """What is learned from ratings.

    Attributes:
        ranges: of each attribute the least and the highest rating, which become 0 and 1.
        verbosity: the index of the one that is taken out of the others; None: there is none.
    """

    ranges: dict[str, tuple[float, float]]
    verbosity: int | None

    @property
    def names(self) -> list[str]:
        return list(self.ranges)


@dataclass(frozen=True)
class Fitted:
    """Attributes with their regressions on hidden states.

    Attributes:
        ratings: [n, m] in units of the data, NaN where there is none.
    """

    attributes: Attributes
    regression: ridge.Regression
    ratings: numpy.ndarray

    def rewards(self, states: numpy.ndarray) -> numpy.ndarray:
        """r = W h; [..., d] -> [..., m] float64."""
        return states.astype(numpy.float64) @ self.regression.weights.T

    def in_data_units(self, rewards: numpy.ndarray) -> numpy.ndarray:
        """Rewards, [..., m], as ratings."""
        low, high = numpy.array(list(self.attributes.ranges.values())).T
        return low + rewards * (high - low)


def add_attribute_arguments(group: argparse._ActionsContainer) -> None:
    """Which attributes, and what is taken out of them."""
    add_attributes_argument(
        group,
        "attributes to learn, with their least and highest rating (default: all that the data rates, from the least to"
        " the highest rating there is)",
    )
    group.add_argument(
        "--verbosity_attribute",
        metavar="NAME",
        help=f"the attribute that is taken out of all others; {NONE}: nothing is (default: the one whose name ends in"
        f" {VERBOSITY!r}, if there is one)",
    )
    group.add_argument(
        "--verbosity_threshold",
        type=positive_float,
        default=debias.THRESHOLD,
        help="rank correlation with it that a reward may keep, over the replies of --data",
    )


def chosen_attributes(args: argparse.Namespace, rated: Examples) -> Attributes:
    """The attributes of a run.

    Raises:
        UserError: too few ratings of one, or all of one value (not in a dry run, which has seen a sample); none of the
            name of `--verbosity_attribute`, or several that could be meant.
    """
    ratings = [example.record.ratings for example in rated]
    named = named_attributes(args.attributes) or [Attribute(name) for name in attributes_of(e.record for e in rated)]
    ranges = {}
    for each in named:
        values = [found[each.name] for found in ratings if each.name in found]
        low, high = (min(values, default=0.0), max(values, default=0.0)) if each.low is None else (each.low, each.high)
        if low == high and not args.dry_run:
            found = f"all {len(values)} ratings are {low:g}" if values else "no rating is left"
            raise UserError(f"--attributes {each.name}: {found}; there is nothing to learn")
        ranges[each.name] = low, high
    if not args.dry_run:
        check_enough(args, rated, list(ranges))
    return Attributes(ranges, verbosity_index(args.verbosity_attribute, list(ranges)))


def check_enough(args: argparse.Namespace, rated: Examples, names: list[str]) -> None:
    """Raises: UserError: an attribute without ratings on one side of the split that chooses α."""
    ratings, held_out = rating_table(rated, names), ridge.hold_out(len(rated), args.seed)
    for name, there in zip(names, ~numpy.isnan(ratings.T), strict=True):
        if not (there & held_out).any() or not (there & ~held_out).any():
            raise UserError(f"--attributes {name}: {there.sum()} ratings are too few to fit and to choose by")


def rating_table(rated: Examples, names: list[str]) -> numpy.ndarray:
    """[n, m] float64, NaN where there is no rating."""
    table = [[example.record.ratings.get(name, numpy.nan) for name in names] for example in rated]
    return numpy.array(table, dtype=numpy.float64)


def verbosity_index(name: str | None, names: list[str]) -> int | None:
    """Index of the attribute that `--verbosity_attribute` means."""
    if name == NONE:
        return None
    if name is not None:
        if name not in names:
            raise UserError(
                f"--verbosity_attribute {name}: none of the attributes ({', '.join(names)}; {NONE!r}: none)"
            )
        return names.index(name)
    fitting = [index for index, each in enumerate(names) if each.endswith(VERBOSITY)]
    if len(fitting) > 1:
        raise UserError(f"--verbosity_attribute: needed, of {', '.join(names[index] for index in fitting)}")
    if not fitting:
        print_main(f"note: no attribute ends in {VERBOSITY!r}: nothing is taken out of the others")
        return None
    return fitting[0]


def fit_attributes(args: argparse.Namespace, pieces: ridge.Pieces, rated: Examples, attributes: Attributes) -> Fitted:
    """Ratings in [0, 1], regressed on the states of `pieces`; the same on every rank, which each computes."""
    ratings = rating_table(rated, attributes.names)
    low, high = numpy.array(list(attributes.ranges.values())).T
    progress = Progress(len(attributes.names), "attributes fitted", 1)

    def tell(done: int) -> None:
        beat("fitting the attributes")
        if is_main():
            progress.update(done)

    return Fitted(attributes, ridge.fit(pieces, (ratings - low) / (high - low), args.seed, tell), ratings)


def debiased(args: argparse.Namespace, pairs: KeptStates, fitted: Fitted) -> numpy.ndarray:
    """T, [m, m], from the rewards of both replies of all pairs; prints the penalties."""
    names, verbosity = fitted.attributes.names, fitted.attributes.verbosity
    if verbosity is None:
        return numpy.eye(len(names))
    beat("taking verbosity out of the attributes")
    rewards = numpy.concatenate([fitted.rewards(states[:, :2]).reshape(-1, len(names)) for _, states in pairs.states()])
    found, left = debias.penalties(rewards, verbosity, args.verbosity_threshold)
    before = [debias.correlation(rewards, column, verbosity, 0.0) for column in range(len(names))]
    print_main(f"taking {names[verbosity]} out of the others (penalty: rank correlation with it before -> after):")
    for column, name in enumerate(names):
        if column != verbosity:
            beyond = ", above the threshold" if left[column] > args.verbosity_threshold else ""
            print_main(f"  {name} {found[column]:g}: {before[column]:.3f} -> {left[column]:.3f}{beyond}")
    return debias.transform(found, verbosity)
