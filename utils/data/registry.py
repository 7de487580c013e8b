"""The data formats, by name, and the detection of a row's format from the names of its fields.

A format is one small file in `formats/` that registers how its rows become prompts, dialogues and pairs. A
new one is a file like those and an import in `formats/__init__.py`; nothing else changes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from utils.data.records import Dialogue, Pair, Prompt, Row
from utils.errors import UserError

LABELS = ("better", "safer")


class NotOffered(UserError):
    """A view that the format does not hold (pairs of an instruction data set, say)."""


@dataclass(frozen=True)
class Format:
    """How rows with the fields `fields` are read.

    Each function takes a `Row` and returns the record, or raises `Drop`. `dialogue` is None where the
    format holds no replies; `pair(row, label)` is None where it holds no preferences, and `labels` are the
    ones it holds.
    """

    name: str
    fields: tuple[str, ...]
    prompt: Callable[[Row], Prompt]
    dialogue: Callable[[Row], Dialogue] | None = None
    pair: Callable[[Row, str], Pair] | None = None
    labels: tuple[str, ...] = ()

    def to_prompt(self, row: Row) -> Prompt:
        """The row's prompt."""
        return self.prompt(row)

    def to_dialogue(self, row: Row) -> Dialogue:
        """The row's prompt and the reply to imitate; raises `NotOffered` where there are no replies."""
        if self.dialogue is None:
            raise NotOffered(f"{row.source}: rows of the format '{self.name}' hold no replies to learn from")
        return self.dialogue(row)

    def to_pair(self, row: Row, label: str) -> Pair:
        """The row's two replies ordered by `label`; raises `NotOffered` where the format lacks that label."""
        if self.pair is None:
            raise NotOffered(f"{row.source}: rows of the format '{self.name}' hold no pairs of replies")
        if label not in self.labels:
            raise NotOffered(
                f"{row.source}: rows of the format '{self.name}' do not say which reply is {label}, "
                f"only which is {' or '.join(self.labels)}"
            )
        return self.pair(row, label)


_formats: dict[str, Format] = {}


def register(data_format: Format) -> None:
    """Adds a format; of two that fit a row equally well the one registered first is taken."""
    if data_format.name in _formats:
        raise ValueError(f"the data format '{data_format.name}' is registered twice")
    _formats[data_format.name] = data_format


def detect_format(row: Row) -> Format:
    """The format with the most fields among those whose fields the row has. Raises `UserError` if none."""
    fitting = [candidate for candidate in _formats.values() if set(candidate.fields) <= set(row.fields)]
    if not fitting:
        known = "; ".join(f"{each.name}: {', '.join(each.fields)}" for each in _formats.values())
        raise UserError(
            f"{row.source}: no known format has these fields: {row.names() or 'none'} (known formats: {known})"
        )
    return max(fitting, key=lambda candidate: len(candidate.fields))
