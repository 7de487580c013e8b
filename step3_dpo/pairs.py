"""Pairs that several objectives may have labelled: one record for two replies, whatever is said of them."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from utils.data.encoding import Encoded
from utils.data.prompt_pairs import PromptPair
from utils.data.records import Message, Pair, Record, conversation_key

REPLIES = 2  # rows of a pair


@dataclass(frozen=True)
class LabelledPair(Record):
    """Two replies to one prompt, and which of them each objective prefers.

    Attributes:
        labels: [m] 1 where it is the first, -1 where it is the second, 0 where the objective's data does not say.
    """

    PLURAL: ClassVar[str] = "pairs"
    CONTENT: ClassVar[str] = "pairs of replies"
    REPLIES: ClassVar[tuple[str, ...]] = ("first", "second")

    messages: list[Message]
    first: str
    second: str
    labels: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class LabelledPromptPair(PromptPair):
    """One reply to two prompts (MAPL); the first is the one that it answers better.

    Attributes:
        labels: [m] as of a `LabelledPair`.
    """

    labels: tuple[int, ...]

    def identity(self, prompt: list[int], responses: Sequence[list[int]]) -> Any:
        """Token ids and labels."""
        return [prompt, *responses, list(self.labels)]


Labelled = LabelledPair | LabelledPromptPair


@dataclass(frozen=True)
class MeasuredPair(Encoded):
    """A pair with what frozen models say of it.

    Attributes:
        reference: log π₀(first) − log π₀(second); NaN where it is computed when it is needed.
        margin, of_reference: MODPO's margin is `margin` − `of_reference` × `reference`.
        counts: False where it is in a step once more, as work for a rank that has no other.
    """

    reference: float = float("nan")
    margin: float = 0.0
    of_reference: float = 0.0
    counts: bool = True

    @property
    def labels(self) -> tuple[int, ...]:
        """[m] of its record; none where it does not count."""
        return self.record.labels if self.counts else (0,) * len(self.record.labels)

    def again(self) -> "MeasuredPair":
        """The pair once more."""
        return dataclasses.replace(self, counts=False)


def merged(records: Sequence[Sequence[Pair | PromptPair]]) -> list[Labelled]:
    """The pairs of m objectives; one that several of them have labelled is there once.

    Of a pair that an objective has several times, so are as many.
    """
    found: dict[Hashable, Labelled] = {}
    for objective, own in enumerate(records):
        seen: Counter[Hashable] = Counter()
        for record in own:
            key = pair_key(record)
            seen[key] += 1
            known = found.get((key, seen[key]))
            found[key, seen[key]] = labelled(record, known, objective, len(records))
    return list(found.values())


def pair_key(record: Pair | PromptPair) -> Hashable:
    """What makes two pairs the same, in whatever order."""
    if isinstance(record, PromptPair):
        return frozenset(map(conversation_key, record.prompts)), record.response
    return conversation_key(record.messages), frozenset(record.replies)


def labelled(record: Pair | PromptPair, known: Labelled | None, objective: int, count: int) -> Labelled:
    """A record with one more label.

    Args:
        known: what other objectives have said of it, if any has.
        count: m.
    """
    if isinstance(record, PromptPair):
        fresh = known or LabelledPromptPair(
            record.messages, record.rejected_prompt, record.response, record.side, record.source, (0,) * count
        )
        same_order = fresh.messages == record.messages
    else:
        fresh = known or LabelledPair(record.messages, record.chosen, record.rejected, (0,) * count, record.source)
        same_order = fresh.first == record.chosen
    labels = list(fresh.labels)
    labels[objective] = 1 if same_order else -1
    return dataclasses.replace(fresh, labels=tuple(labels))


def conflicts(records: Sequence[Labelled], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """{"a, b": pairs that objectives a and b have both labelled, and those in opposite order} of those with some."""
    found = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
        products = [record.labels[i] * record.labels[j] for record in records]
        if both := sum(map(abs, products)):
            found[f"{a}, {b}"] = {"pairs": both, "opposite": products.count(-1)}
    return found


def shared_prefix(example: Encoded) -> int:
    """Tokens with which both replies to one prompt begin: they have the same log-probabilities, under any policy."""
    if example.other_prompts:
        return 0
    return len(os.path.commonprefix(example.responses))
