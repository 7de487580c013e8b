"""Pairs that keep the subset of a benchmark they belong to, or any other field of their rows that groups them."""

from dataclasses import dataclass
from typing import Any

from utils.data.records import Pair, View
from utils.data.rows import Row


@dataclass(frozen=True)
class SubsetPair(Pair):
    """A pair and its subset, "" where the row names none."""

    subset: str = ""


@dataclass(frozen=True)
class SubsetView(View):
    """Pairs by a label, of every format that offers these; `field` of the row says the subset."""

    field: str = "subset"

    def convert(self, data_format: Any, row: Row) -> SubsetPair:
        """The format's own pair with its subset. Raises what `Format.read` raises, and see `subset_of`."""
        pair = data_format.read(row, View(Pair, self.label))
        return SubsetPair(**vars(pair), subset=subset_of(row, self.field))


def subset_of(row: Row, field: str) -> str:
    """The row's subset, "" where the field is missing, null or blank.

    Raises:
        UserError: neither text nor a number.
    """
    value = row.fields.get(field)
    if value is None or value != value:  # NaN is what tables hold in place of null
        return ""
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        raise row.wrong(field, "text or a number", value)
    return row.text(field).strip()
