"""From a `--data` specification to records: read, convert, drop and count, subsample, mix.

`load_prompts`, `load_dialogues` and `load_pairs` are what the stages call; `load_view` serves any other kind of record.
`read_source` is the step for one source, which the inspection and splitting tools share.
"""

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.data import formats  # noqa: F401  (registers the formats)
from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Pair, Prompt, View
from utils.data.registry import Format, NotOffered, detect_format, preference_labels, views
from utils.data.rows import Drop, Row
from utils.data.sources import Source, parse_spec
from utils.data.summaries import ReadingSummary, SourceSummary
from utils.process.errors import UserError
from utils.process.plain_text import printable

ID_FIELDS = ("id", "prompt_id")


class RowIds:
    """The ids that rows of one source carry, to find rows that are there twice.

    A repeated row says nothing new; two rows under one id may both be right (the parts of a conversation, say), so
    they are reported and kept. Files mostly number their rows from 0: ids of different sources mean nothing.
    """

    def __init__(self) -> None:
        self.places: dict[str, tuple[bytes, str]] = {}  # {id: (digest of the row, its place)}

    def is_repeated(self, row: Row, summary: SourceSummary) -> bool:
        """Whether a row is one seen before, in every field; of another one with its id `summary` takes note."""
        found = next((row.fields[name] for name in ID_FIELDS if row.fields.get(name) not in (None, "")), None)
        if found is None:
            return False
        content = json.dumps(row.fields, sort_keys=True, default=str).encode()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        known, place = self.places.setdefault(str(found), (digest, row.source))
        if known != digest:
            summary.conflicts.append(f"{row.source} and {place}")
        return known == digest and place != row.source


def load_prompts(spec: str, seed: int = 0, fields: Sequence[str] = ()) -> tuple[list[Prompt], ReadingSummary]:
    """Prompts of all sources in `spec`, each distinct one once, with these further `fields` of their rows.

    Raises `UserError` like `load_view`.
    """
    return load_view(spec, dataclasses.replace(PROMPTS, fields=tuple(fields)), seed)


def load_dialogues(spec: str, seed: int = 0) -> tuple[list[Dialogue], ReadingSummary]:
    """Prompts with the reply to imitate; from preferences the chosen, better or (failing that) safe reply."""
    return load_view(spec, DIALOGUES, seed)


def load_pairs(spec: str, label: str, seed: int = 0) -> tuple[list[Pair], ReadingSummary]:
    """Pairs of replies ordered by `label`, "better" or "safer"; an unnamed preference serves either."""
    if label not in preference_labels():
        raise UserError(f"the preference label must be one of {', '.join(preference_labels())}, not '{label}'")
    return load_view(spec, View(Pair, label), seed)


def load_view(spec: str, view: View, seed: int = 0) -> tuple[list[Any], ReadingSummary]:
    """All records of `spec` in one view, source after source, and what became of every row.

    Raises `UserError` for unreadable or malformed input, for a view the format lacks, and when no record is
    left.
    """
    records, summary, seen = [], ReadingSummary(), set()
    for position, source in enumerate(parse_spec(spec)):
        part, source_summary = read_source(source, view, f"{seed}:{position}", seen)
        records += part
        summary.sources.append(source_summary)
    if not records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.dropped.most_common())
        raise UserError(f"{spec}: none of the {summary.read} rows can be used ({reasons})")
    return records, summary


def read_source(source: Source, view: View, seed: str, seen: set[Hashable]) -> tuple[list[Any], SourceSummary]:
    """The records of one source and what became of its rows.

    `seen` holds the keys kept so far and is extended. Every row is read by the format that its own fields tell. A
    fraction keeps that part of the usable records, at least one, in their order, drawn with `seed`.
    """
    reading = Reading(source, view, seen)
    for row in source.rows():
        reading.take(row, detect_format(row))
    return reading.finish(seed)


class Reading:
    """The records that one view finds in a source, row by row; `seen` holds the keys of the sources before."""

    def __init__(self, source: Source, view: View, seen: set[Hashable]) -> None:
        self.source, self.view, self.seen = source, view, seen
        self.records: list[Any] = []
        self.keys: set[Hashable] = set()
        self.shared: dict[tuple[str, str], Any] = {}  # {(group, field): the group's value}
        self.ids, self.summary = RowIds(), SourceSummary(source.name)

    def take(self, row: Row, data_format: Format) -> None:
        """Keep or drop what a row says. Raises `UserError` for a malformed one, and for one without what the view
        wants."""
        found: Any = []
        try:
            found = self.view.convert(data_format, self.whole(row, data_format))
        except Drop as reason:
            found = reason
        self.summary.read += 1
        self.summary.formats[data_format.name] += 1
        found = found if isinstance(found, list) else [found]
        for reason in (each for each in found if isinstance(each, Drop)):
            self.summary.dropped[printable(str(reason))] += 1  # it may quote the row
        records = [record for record in found if not isinstance(record, Drop) and self.is_new(record)]
        if records and self.ids.is_repeated(row, self.summary):
            self.summary.dropped["repeated row (same id, same content)"] += len(records)
        else:
            self.records += records

    def whole(self, row: Row, data_format: Format) -> Row:
        """A row with the values that it shares with others of its group, of which only the first has them."""
        group = row.fields.get(data_format.group)
        if group is None or not data_format.shared:
            return row
        fields = dict(row.fields)
        for name in data_format.shared:
            if fields.get(name) is not None:
                self.shared.setdefault((str(group), name), fields[name])
            elif (str(group), name) in self.shared:
                fields[name] = self.shared[str(group), name]
        return Row(fields, row.source)

    def is_new(self, record: Any) -> bool:
        """Whether no record with the same key was kept before; if it was, the summary counts this one."""
        if self.view.key is None:
            return True
        key = self.view.key(record)
        if key in self.keys or key in self.seen:
            self.summary.dropped[self.view.duplicate] += 1
            return False
        self.keys.add(key)
        return True

    def finish(self, seed: str) -> tuple[list[Any], SourceSummary]:
        """The records, subsampled if the source says so, and what became of its rows; extends `seen`."""
        records = self.view.gather(self.records, self.summary.dropped)
        records = _subsample(records, self.source.fraction, seed, self.summary)
        self.summary.kept = len(records)
        if self.view.key is not None:
            self.seen.update(map(self.view.key, records))
        return records, self.summary


def _subsample(records: list[Any], fraction: float, seed: str, summary: SourceSummary) -> list[Any]:
    if fraction == 1 or not records:
        return records
    count = max(1, round(fraction * len(records)))
    chosen = sorted(random.Random(seed).sample(range(len(records)), count))
    if count < len(records):
        summary.dropped[f"left out by the fraction {fraction:g}"] = len(records) - count
    return [records[index] for index in chosen]


@dataclass(frozen=True)
class Inspection:
    """What all views make of one source.

    Attributes:
        fields: names of the first row's.
        read: rows in all.
        formats: rows of each format.
        views: {name of a view that a format offers: (its records, what became of the rows)}.
        faults: what is wrong with rows that the stages would refuse, with their places.
    """

    fields: list[str]
    read: int
    formats: Counter[str]
    views: dict[str, tuple[list[Any], SourceSummary]]
    faults: list[str]


def inspect_source(
    source: Source,
    seed: int = 0,
    on_row: Callable[[int], None] = lambda read: None,
    wanted: Sequence[View] | None = None,
) -> Inspection:
    """Reads a source in the `wanted` views, or all, at once, and goes on after a malformed row; `on_row` hears how many
    are read.

    Raises `UserError` if the source cannot be read, or no row of it has a known format.
    """
    readings = {view.name: Reading(source, view, set()) for view in wanted or views()}
    fields, read, counts, faults, offered = [], 0, Counter(), [], set()
    for read, row in enumerate(source.rows(), start=1):
        on_row(read)
        fields = list(row.fields) if read == 1 else fields
        try:
            data_format = detect_format(row)
        except UserError as error:
            faults.append(str(error))
            continue
        counts[data_format.name] += 1
        found = {}
        for name, reading in readings.items():
            try:
                reading.take(row, data_format)
            except NotOffered:
                reading.summary.dropped[f"of the format '{data_format.name}', which has none"] += 1
                continue
            except UserError as error:
                found[str(error)] = None  # mostly the same in all views
            offered.add(name)
        faults += found
    if not counts:
        raise UserError(faults[0] + and_others(faults))
    finished = {name: reading.finish(f"{seed}:0") for name, reading in readings.items() if name in offered}
    return Inspection(fields, read, counts, finished, faults)


def and_others(faults: list[str]) -> str:
    """What to say after the first of several faults."""
    return f" (and {len(faults) - 1} other row{'s' * (len(faults) > 2)})" if len(faults) > 1 else ""
