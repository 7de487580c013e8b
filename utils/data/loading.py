"""From a `--data` specification to records: read, convert, drop and count, subsample, mix.

`load_prompts`, `load_dialogues` and `load_pairs` are what the stages call; `read_source` is the step for
one source, which the inspection and splitting tools share.
"""

import hashlib
import json
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from utils.data import formats  # noqa: F401  (registers the formats)
from utils.data.records import (
    Dialogue,
    Drop,
    Message,
    Pair,
    Prompt,
    ReadingSummary,
    Row,
    SourceSummary,
)
from utils.data.registry import LABELS, Format, NotOffered, detect_format
from utils.data.sources import Source, parse_spec
from utils.errors import UserError
from utils.plain_text import printable


@dataclass(frozen=True)
class View:
    """What rows become: `convert(format, row)` gives the record; of equal `key`s the first is kept."""

    name: str
    convert: Callable[[Format, Row], Any]
    key: Callable[[Any], Hashable] | None = None
    duplicate: str = "duplicate"


def conversation_key(messages: list[Message]) -> Hashable:
    """What makes two prompts the same: their turns."""
    return tuple((message["role"], message["content"]) for message in messages)


PROMPTS = View("prompts", Format.to_prompt, lambda prompt: conversation_key(prompt.messages), "duplicate prompt")
DIALOGUES = View("dialogues", Format.to_dialogue)
PAIRS = {
    label: View(f"pairs, {label}", lambda data_format, row, label=label: data_format.to_pair(row, label))
    for label in LABELS
}
VIEWS = (PROMPTS, DIALOGUES, *PAIRS.values())
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


def load_prompts(spec: str, seed: int = 0) -> tuple[list[Prompt], ReadingSummary]:
    """Prompts of all sources in `spec`, each distinct one once. Raises `UserError` like `load_view`."""
    return load_view(spec, PROMPTS, seed)


def load_dialogues(spec: str, seed: int = 0) -> tuple[list[Dialogue], ReadingSummary]:
    """Prompts with the reply to imitate; from preferences the chosen, better or (failing that) safe reply."""
    return load_view(spec, DIALOGUES, seed)


def load_pairs(spec: str, label: str, seed: int = 0) -> tuple[list[Pair], ReadingSummary]:
    """Pairs of replies ordered by `label`, "better" or "safer"; an unnamed preference serves either."""
    if label not in PAIRS:
        raise UserError(f"the preference label must be one of {', '.join(PAIRS)}, not '{label}'")
    return load_view(spec, PAIRS[label], seed)


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

    `seen` holds the keys kept so far and is extended. The format is that of the first row. A fraction keeps
    that part of the usable records, at least one, in their order, drawn with `seed`.
    """
    records, keys, ids, summary, data_format = [], set(), RowIds(), SourceSummary(source.name, ""), None
    for row in source.rows():
        data_format = data_format or detect_format(row)
        summary.read += 1
        try:
            record = view.convert(data_format, row)
        except Drop as reason:
            summary.dropped[printable(str(reason))] += 1  # it may quote the row
            continue
        if view.key is not None:
            key = view.key(record)
            if key in keys or key in seen:
                summary.dropped[view.duplicate] += 1
                continue
            keys.add(key)
        if ids.is_repeated(row, summary):
            summary.dropped["repeated row (same id, same content)"] += 1
            continue
        records.append(record)
    summary.format = data_format.name
    records = _subsample(records, source.fraction, seed, summary)
    summary.kept = len(records)
    if view.key is not None:
        seen.update(map(view.key, records))
    return records, summary


def _subsample(records: list[Any], fraction: float, seed: str, summary: SourceSummary) -> list[Any]:
    if fraction == 1 or not records:
        return records
    count = max(1, round(fraction * len(records)))
    chosen = sorted(random.Random(seed).sample(range(len(records)), count))
    if count < len(records):
        summary.dropped[f"left out by the fraction {fraction:g}"] = len(records) - count
    return [records[index] for index in chosen]


def view_summaries(source: Source, seed: int = 0) -> dict[str, tuple[SourceSummary, Any]]:
    """For each view the source offers: what became of its rows, and the first record (None if all went)."""
    summaries = {}
    for view in VIEWS:
        try:
            records, summary = read_source(source, view, f"{seed}:0", set())
        except NotOffered:
            continue
        summaries[view.name] = summary, next(iter(records), None)
    return summaries
