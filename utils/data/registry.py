"""The data formats, by name, and the detection of a row's format from the names of its fields.

A format is one small file in `formats/` that registers how its rows become prompts, dialogues and pairs. A
new one is a file like those and an import in `formats/__init__.py`; nothing else changes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from utils.data.records import Dialogue, Pair, Prompt, Row
from utils.process.errors import UserError

LABELS = ("better", "safer")


class NotOffered(UserError):
    """A view that the format does not hold (pairs of an instruction data set, say)."""


@dataclass(frozen=True)
class Format:
    """How rows with the fields `fields` are read; "a|b" is a field that may be called a or b.

    Each function takes a `Row` and returns the record, or raises `Drop`. `dialogue` is None where the
    format holds no replies; `pair(row, label)` is None where it holds no preferences, and `labels` are the
    ones it holds. `fits` says whether the fields of a row that has them hold what this format means by them.
    """

    name: str
    fields: tuple[str, ...]
    prompt: Callable[[Row], Prompt]
    dialogue: Callable[[Row], Dialogue] | None = None
    pair: Callable[[Row, str], Pair] | None = None
    labels: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True

    def to_prompt(self, row: Row) -> Prompt:
        """The row's prompt."""
        return self.prompt(row)

    def to_dialogue(self, row: Row) -> Dialogue:
        """The row's prompt and the reply to imitate; raises `NotOffered` where there are no replies."""
        if self.dialogue is None:
            raise NotOffered(
                f"{row.source}: rows of the format '{self.name}' hold no replies to learn from (found: {row.names()})"
            )
        return self.dialogue(row)

    def to_pair(self, row: Row, label: str) -> Pair:
        """The row's two replies ordered by `label`; raises `NotOffered` where the format lacks that label."""
        if self.pair is None:
            raise NotOffered(
                f"{row.source}: rows of the format '{self.name}' hold no pairs of replies (found: {row.names()})"
            )
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
    _candidates.cache_clear()


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
