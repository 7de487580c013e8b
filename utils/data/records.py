"""The kinds of records that rows become, and the views of data that are made of them.

A kind is one class, which says all that others need to know of its fields: loaders, encoding, fingerprints, inspection
and memory plan ask it. A view is what a data format may offer: `PROMPTS`, `DIALOGUES`, pairs by a label. A new kind is
a class like those below, here or in a file of its own (`ratings.py`, `prompt_pairs.py`), and a format that offers
`View(THE_CLASS)`; it is loaded with `load_view`.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Record:
    """What a row says in one view. A kind is a frozen dataclass with the two fields below and its own between them.

    Attributes:
        messages: turns up to and including the last user turn, to which replies answer.
        source: "file:line" or "hub-name:index".
        PLURAL: what many of the kind are called.
        CONTENT: what a format is told to lack that does not offer them.
        REPLIES: the fields that are replies, in the order of an example's responses.
    """

    messages: list[Message]
    source: str
    PLURAL: ClassVar[str]
    CONTENT: ClassVar[str]
    REPLIES: ClassVar[tuple[str, ...]] = ()

    @property
    def replies(self) -> tuple[str, ...]:
        """What it says in answer to its prompt."""
        return tuple(getattr(self, name) for name in self.REPLIES)

    @property
    def prompts(self) -> list[list[Message]]:
        """The prompt of all replies; or of several prompts, which one reply answers, each."""
        return [self.messages]

    @property
    def texts(self) -> list[str]:
        """All turns of the prompts, then the replies."""
        return [*(message["content"] for messages in self.prompts for message in messages), *self.replies]

    @property
    def sequences(self) -> int:
        """Rows of a batch that it takes: one for each reply to each prompt; a prompt alone is one."""
        return max(1, len(self.replies)) * len(self.prompts)

    @property
    def annotations(self) -> dict[str, Any]:
        """All other fields, which say something of the replies: labels, margins, ratings; JSON."""
        known = {"messages", "source", *self.REPLIES}
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in known}

    def identity(self, prompt: list[int], responses: Sequence[list[int]]) -> Any:
        """All of it that trains something, for a fingerprint of the data: its token ids and annotations; JSON."""
        return [prompt, *responses, list(self.annotations.values())]

    def as_dict(self) -> dict[str, Any]:
        """Place, prompt, replies and annotations for JSON."""
        replies = dict(zip(self.REPLIES, self.replies, strict=True))
        return {"source": self.source, "messages": self.messages, **replies, **self.annotations}

    def shown(self) -> list[tuple[str, str]]:
        """What people are shown of it, as (name, text): turns and replies."""
        turns = [(message["role"], message["content"]) for message in self.messages]
        return turns + list(zip(self.REPLIES, self.replies, strict=True))


@dataclass(frozen=True)
class View:
    """What is asked of rows: records of one kind; where data may order replies in several ways, by one of its labels.

    Attributes:
        key: of records with equal keys the first is kept; None: all are.
        duplicate: why the others are dropped.
    """

    record: type[Record]
    label: str | None = None
    key: Callable[[Any], Hashable] | None = None
    duplicate: str = "duplicate"

    @property
    def name(self) -> str:
        """What people call it."""
        return self.record.PLURAL + (f", {self.label}" if self.label else "")

    def convert(self, data_format: Any, row: Any) -> Any:
        """The record of a `Row` by a `Format`, or a list of them, with a `Drop` in place of each that is of no use.

        Raises what `Format.read` raises.
        """
        return data_format.read(row, self)

    def gather(self, records: list[Any], dropped: Counter[str]) -> list[Any]:
        """What becomes of a source's records once all are read; notes in `dropped` what is left out and why."""
        return records


def conversation_key(messages: Sequence[Message]) -> Hashable:
    """What makes two prompts the same: their turns."""
    return tuple((message["role"], message["content"]) for message in messages)


@dataclass(frozen=True)
class Prompt(Record):
    """Turns up to and including the last user turn, to be answered.

    Attributes:
        instructions: what the turns ask of the reply that a program can check, as the row says it in its field of this
            name (see `utils.instructions`); for judges.
        fields: others of the row that were asked for, by name.
        task: what the prompt belongs to, if to anything (see `utils.scoring.tasks`).
    """

    PLURAL: ClassVar[str] = "prompts"
    CONTENT: ClassVar[str] = "prompts"

    messages: list[Message]
    source: str
    instructions: tuple[Any, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""

    @property
    def annotations(self) -> dict[str, Any]:
        """Those that there are."""
        found = {"instructions": list(self.instructions), "fields": dict(self.fields), "task": self.task}
        return {name: value for name, value in found.items() if value}

    def identity(self, prompt: list[int], responses: Sequence[list[int]]) -> Any:
        """The token ids of the prompt, and annotations, if there are some."""
        return [prompt, *self.annotations.values()] if self.annotations else prompt


@dataclass(frozen=True)
class PromptsView(View):
    """Prompts, with what else their rows say of them.

    Attributes:
        fields: names of those of `Prompt.fields`.
    """

    fields: tuple[str, ...] = field(default=(), compare=False)

    def convert(self, data_format: Any, row: Any) -> Prompt:
        """Raises what `Format.read` raises."""
        prompt, found = super().convert(data_format, row), row.fields.get("instructions")
        asked = {name: row.fields[name] for name in self.fields if row.fields.get(name) is not None}
        instructions = tuple(found) if isinstance(found, list) else ()
        return dataclasses.replace(prompt, instructions=instructions, fields=asked)


PROMPTS = PromptsView(Prompt, key=lambda prompt: conversation_key(prompt.messages), duplicate="duplicate prompt")


@dataclass(frozen=True)
class Dialogue(Record):
    """A prompt and the reply to learn from."""

    PLURAL: ClassVar[str] = "dialogues"
    CONTENT: ClassVar[str] = "replies to learn from"
    REPLIES: ClassVar[tuple[str, ...]] = ("response",)

    messages: list[Message]
    response: str
    source: str

    def identity(self, prompt: list[int], responses: Sequence[list[int]]) -> Any:
        """Token ids, and two safety labels that it has not: checkpoints know dialogues by that."""
        return [prompt, *responses, [None, None]]


DIALOGUES = View(Dialogue)


@dataclass(frozen=True)
class Pair(Record):
    """Two replies to one prompt, the preferred one first; safety labels are None where the data has none.

    Attributes:
        margin: by how much it is preferred, where the data says it: a difference of ratings, say.
    """

    PLURAL: ClassVar[str] = "pairs"
    CONTENT: ClassVar[str] = "pairs of replies"
    REPLIES: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    messages: list[Message]
    chosen: str
    rejected: str
    chosen_safe: bool | None
    rejected_safe: bool | None
    source: str
    margin: float | None = None

    @property
    def annotations(self) -> dict[str, Any]:
        """Without a margin where there is none: checkpoints know pairs by that."""
        found = super().annotations
        return found if self.margin is not None else {name: found[name] for name in found if name != "margin"}


LABELS = ("better", "safer")  # what a preference may say of a pair; one that does not say serves either
