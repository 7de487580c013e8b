"""The data formats, by name, and the detection of a row's format from the names of its fields.

A format is one small file in `formats/` that registers which views its rows offer, and how they become the records of
each. A new one is a file like those, which is found by its place; nothing else changes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from utils.data.records import LABELS, Pair, Record, View
from utils.data.rows import Drop, Row
from utils.process.errors import UserError


class NotOffered(UserError):
    """A view that the format does not hold (pairs of an instruction data set, say)."""


@dataclass(frozen=True)
class Format:
    """How rows with the fields `fields` are read; "a|b" is a field that may be called a or b.

    Attributes:
        offers: {view: function that takes a `Row` and returns the record, or a list of records and `Drop`s, or raises
            `Drop`}.
        fits: whether the fields of a row that has them hold what this format means by them.
        shared, group: fields that may be null in all rows but the first of those with the same `group`.
    """

    name: str
    fields: tuple[str, ...]
    offers: Mapping[View, Callable[[Row], Record | list[Record | Drop]]]
    fits: Callable[[Row], bool] = lambda row: True
    shared: tuple[str, ...] = ()
    group: str = "group"

    def read(self, row: Row, view: View) -> Record | list[Record | Drop]:
        """The row's record, or records, in a view.

        Raises `NotOffered` where the format lacks it, and `Drop` for a row of no use.
        """
        if view in self.offers:
            return self.offers[view](row)
        labels = [other.label for other in self.offers if other.record is view.record and other.label]
        lacks = f"hold no {view.record.CONTENT} (found: {row.names()})"
        if labels:
            lacks = f"do not say which reply is {view.label}, only which is {' or '.join(labels)}"
        raise NotOffered(f"{row.source}: rows of the format '{self.name}' {lacks}")


def preferences(pair: Callable[[Row, str], Pair], labels: Sequence[str] = LABELS) -> dict[View, Callable[[Row], Pair]]:
    """The views of a format that orders two replies by each of the `labels`; `pair` takes a `Row` and the label."""
    return {View(Pair, label): functools.partial(pair, label=label) for label in labels}


_formats: dict[str, Format] = {}


def register(data_format: Format) -> None:
    """Adds a format; of two that fit a row equally well the one registered first is taken."""
    if data_format.name in _formats:
        raise ValueError(f"the data format '{data_format.name}' is registered twice")
    _formats[data_format.name] = data_format
    _candidates.cache_clear()


def views() -> list[View]:
    """The views that some format offers, those with more replies and fields later."""
    offered = {view for each in _formats.values() for view in each.offers}
    return sorted(offered, key=lambda v: (len(v.record.REPLIES), len(dataclasses.fields(v.record)), v.name))


def preference_labels() -> list[str]:
    """The labels by which some format orders pairs."""
    return [view.label for view in views() if view.record is Pair]


def detect_format(row: Row) -> Format:
    """The format with the most fields among those whose fields the row has. Raises `UserError` if none."""
    found = next((candidate for candidate in _candidates(tuple(row.fields)) if candidate.fits(row)), None)
    if found is None:
        known = "; ".join(f"{each.name}: {', '.join(map(_first_name, each.fields))}" for each in _formats.values())
        raise UserError(
            f"{row.source}: no known format has these fields: {row.names() or 'none'} (known formats: {known})"
        )
    return found


@functools.lru_cache(maxsize=256)  # a file has few sets of names
def _candidates(names: tuple[str, ...]) -> list[Format]:
    """Formats whose fields are among `names`, the best first: the most under their first name, then the most.

    Beside turns, texts under other names may be anything: the turns are better.
    """
    turns = {"messages", "conversations"} & set(names)

    def rank(candidate: Format) -> tuple[bool, int, int]:
        others = [field for field in candidate.fields if _first_name(field) not in names]
        reads_turns = any(turns & set(field.split("|")) for field in candidate.fields)
        return reads_turns or not (turns and others), len(candidate.fields) - len(others), len(candidate.fields)

    fitting = [each for each in _formats.values() if all(set(field.split("|")) & set(names) for field in each.fields)]
    return sorted(fitting, key=rank, reverse=True)


def _first_name(field: str) -> str:
    return field.split("|")[0]
