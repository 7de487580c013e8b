"""What the loaders hand to the stages, and the typed access to a raw row that every format adapter uses.

A row that is well formed but of no use (an empty reply, a tie) raises `Drop` and is counted; a row whose
fields have the wrong type is a mistake in the file and raises `UserError` with its place.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from utils.process.errors import UserError
from utils.process.plain_text import printable

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Drop(Exception):
    """A well-formed row that the view at hand cannot use; the message is the reason that is counted."""


@dataclass(frozen=True)
class Prompt:
    """Turns up to and including the last user turn; `source` is "file:line" or "hub-name:index"."""

    messages: list[Message]
    source: str


@dataclass(frozen=True)
class Dialogue:
    """A prompt and the reply to learn from."""

    messages: list[Message]
    response: str
    source: str


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, the preferred one first; safety labels are None where the data has none."""

    messages: list[Message]
    chosen: str
    rejected: str
    chosen_safe: bool | None
    rejected_safe: bool | None
    source: str


Record = Prompt | Dialogue | Pair


@dataclass(frozen=True)
class Row:
    """One raw row: its fields and its place. The getters raise `UserError` "place: ..." on a wrong type."""

    fields: dict[str, Any]
    source: str

    def value(self, name: str) -> Any:
        """The field as it is; a missing one raises `UserError`."""
        if name not in self.fields:
            raise UserError(f"{self.source}: the field '{name}' is missing (found: {self.names()})")
        return self.fields[name]

    def present(self, names: str) -> str:
        """Of the names "a|b" for a field the first that the row uses; the first of all if none."""
        alternatives = names.split("|")
        return next((name for name in alternatives if name in self.fields), alternatives[0])

    def names(self) -> str:
        """The names of all fields, fit for one line."""
        names = ", ".join(name if name.isprintable() else repr(name) for name in map(str, self.fields))
        return names if len(names) <= 200 else names[:197] + "..."

    def wrong(self, name: str, expected: str, value: Any) -> UserError:
        """The error of a field that holds something other than `expected`."""
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return UserError(f"{self.source}: the field '{name}' must be {expected}, found {shown}")

    def text(self, name: str) -> str:
        """A text field. Half a surrogate pair, which no tokenizer accepts, drops the row."""
        return self.checked_text(name, self.value(name))

    def checked_text(self, name: str, value: Any) -> str:
        """`value` of the (possibly nested) field `name`, which must be text."""
        if not isinstance(value, str):
            raise self.wrong(name, "text", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Drop("text that is not valid Unicode") from None
        return value

    def optional_text(self, name: str) -> str:
        """A text field that may be missing or null, which read as the empty text."""
        return "" if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str, count: int) -> list[str]:
        """A list of exactly `count` texts."""
        values = self.value(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(name, f"a list of {count} texts", values)
        return [self.checked_text(name, value) for value in values]

    def choice(self, name: str) -> int | None:
        """Which of two responses: 0, 1, or None for null. Tables write them as "1" or 1.0 too."""
        value = self.value(name)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, bool) or value not in (0, 1, "0", "1"):
            raise self.wrong(name, "0 or 1", value)
        return int(value)

    def flag(self, name: str) -> bool:
        """A truth value, or the words that comma-separated tables write for one."""
        value = self.value(name)
        words = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value


def user_turn(text: str) -> list[Message]:
    """The prompt of a single user turn; a blank one drops the row."""
    if not text.strip():
        raise Drop("empty prompt")
    return [{"role": "user", "content": text}]


def reply(text: str) -> str:
    """A reply as it is; a blank one drops the row."""
    if not text.strip():
        raise Drop("empty reply")
    return text


def distinct_replies(chosen: str, rejected: str) -> tuple[str, str]:
    """Both replies as they are; a blank one, or two that say the same, drop the row."""
    chosen, rejected = reply(chosen), reply(rejected)
    if chosen.strip() == rejected.strip():
        raise Drop("identical replies")
    return chosen, rejected


def describe_formats(formats: Counter[str]) -> str:
    """The name of a format, or "messages (3 rows), prompts (1 row)" of several."""
    if len(formats) == 1:
        return next(iter(formats))
    return ", ".join(f"{name} ({count} row{'s' * (count > 1)})" for name, count in formats.most_common())


@dataclass
class SourceSummary:
    """What became of one file or hub data set: rows read = records kept + rows dropped, by reason.

    `formats` counts the rows of each; `conflicts` are places ("file:17 and file:3") of rows that share an id and
    nothing else; they are kept.
    """

    name: str
    formats: Counter[str] = field(default_factory=Counter)
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        """The format, or of several each with its number of rows."""
        return describe_formats(self.formats)

    def line(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        line = f"{self.name} ({self.format}): read {self.read}, kept {self.kept}"
        if reasons:
            line += f", dropped {self.dropped.total()} ({reasons})"
        if self.conflicts:
            line += f"; {len(self.conflicts)} with the id of a different row (first: {self.conflicts[0]})"
        return line

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "name": self.name,
            "format": self.format,
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            **({"conflicting_ids": self.conflicts} if self.conflicts else {}),
        }


@dataclass
class ReadingSummary:
    """What became of every row of every source, and what tokenization left out or cut afterwards."""

    sources: list[SourceSummary] = field(default_factory=list)
    encoding: Counter[str] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        """Rows read from all sources."""
        return sum(source.read for source in self.sources)

    @property
    def kept(self) -> int:
        """Records kept from all sources, before tokenization."""
        return sum(source.kept for source in self.sources)

    @property
    def dropped(self) -> Counter[str]:
        """Rows dropped from all sources, by reason."""
        return sum((source.dropped for source in self.sources), Counter())

    def lines(self) -> list[str]:
        """Lines for people: one a source, one for each thing tokenization changed; safe to print."""
        changes = [f"{count} {what}" for what, count in self.encoding.items()]
        return [printable(line) for line in [source.line() for source in self.sources] + changes]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            "sources": [source.as_dict() for source in self.sources],
            "encoding": dict(self.encoding),
        }
