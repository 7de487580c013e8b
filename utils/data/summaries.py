"""What became of the rows that were read: counts for people and for JSON."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from utils.process.plain_text import printable


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
