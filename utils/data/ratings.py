"""Replies rated on several attributes, and the preference pairs that ratings of one prompt make."""

import argparse
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from utils.data.records import DIALOGUES, Message, Pair, Record, View, conversation_key
from utils.data.rows import Drop, Row
from utils.process.errors import UserError

ROUNDING = 1e-9  # of differences of ratings such as 0.3 - 0.2


@dataclass(frozen=True)
class Attribute:
    """What a reply is rated on.

    Attributes:
        low, high: the least and the highest rating; None where no one has said.
    """

    name: str
    low: float | None = None
    high: float | None = None

    def check(self, rating: float, source: str) -> None:
        """Raises: UserError: a rating out of range, with its place."""
        if self.low is not None and not self.low <= rating <= self.high:
            raise UserError(f"{source}: '{self.name}' is rated {rating:g}, outside {self.low:g} to {self.high:g}")


def add_attributes_argument(group: argparse._ActionsContainer, meaning: str) -> None:
    """`--attributes`; see `named_attributes`."""
    group.add_argument("--attributes", nargs="+", type=attribute, default=[], metavar="NAME[:low:high]", help=meaning)


def attribute(text: str) -> str:
    """argparse type of `NAME[:low:high]`."""
    try:
        parse_attribute(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(*error.args) from None
    return text


def parse_attribute(text: str) -> Attribute:
    """The attribute that `NAME[:low:high]` names. Raises ValueError where it is none."""
    name, *bounds = text.rsplit(":", 2)
    try:
        low, high = map(float, bounds)
    except ValueError:
        if len(bounds) == 2 or not text.strip():
            raise ValueError(f"{text!r} is not NAME or NAME:low:high") from None
        return Attribute(text)
    if not (name.strip() and math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{text!r} is not NAME:low:high with low below high")
    return Attribute(name, low, high)


def named_attributes(texts: Sequence[str]) -> tuple[Attribute, ...]:
    """The attributes of `--attributes`.

    Raises:
        UserError: one is given twice.
    """
    attributes = tuple(map(parse_attribute, texts))
    names = [each.name for each in attributes]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--attributes {name}: is given twice")
    return attributes


@dataclass(frozen=True)
class Rated(Record):
    """A reply and its ratings by attribute, of those that it has any of."""

    PLURAL: ClassVar[str] = "rated replies"
    CONTENT: ClassVar[str] = "ratings"
    REPLIES: ClassVar[tuple[str, ...]] = ("response",)

    messages: list[Message]
    response: str
    ratings: dict[str, float]
    source: str

    def shown(self) -> list[tuple[str, str]]:
        """The ratings in a line, after what is rated."""
        ratings = ", ".join(f"{name} {value:g}" for name, value in self.ratings.items())
        return [*super().shown(), ("ratings", ratings)]


RATINGS = View(Rated)


def rated(row: Row, messages: list[Message], response: str, ratings: dict[str, Any], field: str = "") -> Rated:
    """The record of ratings {attribute: number or missing}, which stand in `field` if not in fields of their own.

    Raises:
        Drop: nothing is rated.
    """
    place = f"{field}." if field else ""
    numbers = {str(name): row.checked_number(f"{place}{name}", value) for name, value in ratings.items()}
    found = {name: number for name, number in numbers.items() if number is not None}
    if not found:
        raise Drop("no rating")
    return Rated(messages, response, found, row.source)


def with_columns(row: Row, record: Rated, columns: dict[str, Any]) -> Rated:
    """A record with the ratings that a row holds in fields of their own, too."""
    numbers = {name: row.checked_number(name, value) for name, value in columns.items() if name not in record.ratings}
    found = {name: number for name, number in numbers.items() if number is not None}
    return Rated(record.messages, record.response, record.ratings | found, record.source) if found else record


@dataclass(frozen=True)
class RatingsView(View):
    """Ratings on some attributes; without any, on all that the data has. Columns of one's own are read by their names.

    A reply that is rated on none of them is dropped.
    """

    record: type[Record] = Rated
    attributes: tuple[Attribute, ...] = ()

    def convert(self, data_format: Any, row: Row) -> list[Rated | Drop]:
        """Raises: UserError: a rating that is no number or out of range; neither ratings nor such columns."""
        return [each if isinstance(each, Drop) else self.chosen(each) for each in self.read(data_format, row)]

    def read(self, data_format: Any, row: Row) -> list[Rated | Drop]:
        """All that is rated in a row."""
        columns = {each.name: row.fields[each.name] for each in self.attributes if each.name in row.fields}
        if RATINGS in data_format.offers or not columns:
            found = data_format.read(row, RATINGS)
            return found if isinstance(found, list) else [with_columns(row, found, columns)]
        if any(view.record is Pair for view in data_format.offers):
            raise UserError(f"{row.source}: '{next(iter(columns))}' cannot rate two replies")
        dialogue = data_format.read(row, DIALOGUES)
        return [rated(row, dialogue.messages, dialogue.response, columns)]

    def chosen(self, record: Rated) -> Rated | Drop:
        """A record with the ratings that count."""
        if not self.attributes:
            return record
        ratings = {each.name: record.ratings[each.name] for each in self.attributes if each.name in record.ratings}
        for each in self.attributes:
            if each.name in ratings:
                each.check(ratings[each.name], record.source)
        if not ratings:
            return Drop(f"no rating of {', '.join(each.name for each in self.attributes)}")
        return Rated(record.messages, record.response, ratings, record.source)


@dataclass(frozen=True)
class PairsOfRatings(RatingsView):
    """Preference pairs of replies to one prompt, wherever in a source they stand, by their ratings on one attribute.

    Attributes:
        attributes: the one.
        least: ratings that differ by less are a tie.
        ties: "drop" them, or make a pair in "both" orders: then neither reply is better, and their scores meet.
        most: pairs of a prompt at most, drawn with `seed`; None: all.
    """

    record: type[Record] = Pair
    least: float = 0.0
    ties: str = "drop"
    most: int | None = None
    seed: int = 0

    def gather(self, records: list[Rated], dropped: Counter[str]) -> list[Pair]:
        """Pairs of the replies to each prompt, in the order of the prompts."""
        groups: dict[Any, list[Rated]] = {}
        for record in records:
            groups.setdefault(conversation_key(record.messages), []).append(record)
        if alone := sum(len(group) == 1 for group in groups.values()):
            dropped["only rated reply to its prompt"] += alone
        pairs = [self.pairs_of(group, number, dropped) for number, group in enumerate(groups.values())]
        return list(itertools.chain.from_iterable(pairs))

    def pairs_of(self, group: Sequence[Rated], number: int, dropped: Counter[str]) -> list[Pair]:
        """Of the replies to prompt `number`."""
        found = list(
            itertools.chain.from_iterable(self.ordered(a, b, dropped) for a, b in itertools.combinations(group, 2))
        )
        if self.most is None or len(found) <= self.most:
            return found
        dropped[f"pairs beyond {self.most} of a prompt"] += len(found) - self.most
        chosen = sorted(random.Random(f"{self.seed}:{number}").sample(range(len(found)), self.most))
        return [found[index] for index in chosen]

    def ordered(self, first: Rated, second: Rated, dropped: Counter[str]) -> list[Pair]:
        """The pair of two replies, the better one first; both orders of a tie that is kept."""
        if first.response.strip() == second.response.strip():
            dropped["pairs of identical replies"] += 1
            return []
        (name,) = (each.name for each in self.attributes)
        difference = first.ratings[name] - second.ratings[name]
        tie = difference == 0 or abs(difference) < self.least - ROUNDING
        if tie and self.ties == "drop":
            dropped["ties"] += 1
            return []
        better, worse = (first, second) if difference >= 0 else (second, first)
        orders = [(better, worse), (worse, better)] if tie else [(better, worse)]
        margin = 0.0 if tie else abs(difference)
        return [
            Pair(chosen.messages, chosen.response, rejected.response, None, None, chosen.source, margin)
            for chosen, rejected in orders
        ]


def attributes_of(records: Iterable[Rated]) -> list[str]:
    """The names of all attributes that some record is rated on, in the order of their first rating."""
    return list(dict.fromkeys(name for record in records for name in record.ratings))


def describe_ratings(records: Iterable[Rated]) -> dict[str, dict[str, float]]:
    """{attribute: how many replies are rated on it, and the least, the mean and the highest rating}."""
    found: dict[str, list[float]] = {}
    for record in records:
        for name, rating in record.ratings.items():
            found.setdefault(name, []).append(rating)
    return {
        name: {"rated": len(values), "min": min(values), "mean": sum(values) / len(values), "max": max(values)}
        for name, values in found.items()
    }


def check_rated(records: Sequence[Rated], attributes: Sequence[Attribute], spec: str) -> None:
    """Raises: UserError: an attribute that no reply is rated on."""
    known = attributes_of(records)
    for each in attributes:
        if each.name not in known:
            raise UserError(f"--attributes {each.name}: no reply of {spec} is rated on it (rated: {', '.join(known)})")
