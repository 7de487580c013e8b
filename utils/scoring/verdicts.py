"""What a judge says of responses, and what any judge is."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.data.records import Prompt
from utils.policy.sampled import Sampled
from utils.process.distributed import device

ALL = "all"  # what the verdicts of all judges together are called


@dataclass(frozen=True)
class Verdicts:
    """Of a batch of responses.

    Attributes:
        passed: [batch] float32, 1 where a judge passes a response.
        judged: [batch] float32, 1 where it judges it.
    """

    passed: torch.Tensor
    judged: torch.Tensor


@dataclass(frozen=True)
class Replies:
    """Responses, and the prompt of each."""

    prompts: Sequence[Prompt]
    responses: Sequence[str]

    @staticmethod
    def of(sampled: Sampled) -> "Replies":
        return Replies([prompt.record for prompt in sampled.prompts], sampled.responses)

    def some(self, rows: Sequence[int]) -> "Replies":
        """Those of these rows."""
        return Replies([self.prompts[row] for row in rows], [self.responses[row] for row in rows])

    def spread(self, values: torch.Tensor | Sequence[float], rows: Sequence[int]) -> torch.Tensor:
        """Values of some rows among 0 for all others; [batch] float32."""
        found = torch.zeros(len(self.responses), device=device())
        found[torch.tensor(rows, dtype=torch.int64, device=device())] = torch.as_tensor(values).to(found)
        return found


class Judge(ABC):
    """One judge; it has a `name`."""

    name: str

    @abstractmethod
    def verdicts(self, replies: Replies, scored: Mapping[str, Any], rows: Sequence[int]) -> Verdicts:
        """What it says of some responses; of the others it judges none.

        Args:
            scored: {objective: its `Scored`}.
            rows: of the responses that it is asked of.
        """

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Fingerprints of what its verdicts depend on."""

    def try_out(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027  (most need none)
        """Raises: UserError: it cannot judge responses to these prompts; before models are loaded."""

    def loaded(self, args: argparse.Namespace) -> "Judge":
        """With its model, if it has one, in a frozen engine."""
        return self

    def loaded_alone(self, dtype: torch.dtype, batch_size: int) -> "Judge":
        """With its model, if it has one, in this process alone."""
        return self


def all_verdicts(
    judges: Sequence[Judge],
    replies: Replies,
    scored: Mapping[str, Any],
    asked: Mapping[str, Sequence[bool]] | None = None,
) -> dict[str, Verdicts]:
    """Those of each judge by name, and those of all: a response fails that any judge fails, and passes where one at
    least has judged it otherwise.

    Args:
        asked: {judge: whether it is asked of each response}, judges that are not in it of none; None: each of all.
    """
    if not judges:
        return {}
    found = {}
    for judge in judges:
        rows = list(range(len(replies.responses)))
        if asked is not None:
            rows = [row for row, is_asked in enumerate(asked.get(judge.name, ())) if is_asked]
        found[judge.name] = judge.verdicts(replies, scored, rows)
    return found | {ALL: jointly(list(found.values()))}


def jointly(verdicts: Sequence[Verdicts]) -> Verdicts:
    """A response fails that any judge fails, and passes where one at least has judged it otherwise."""
    failed = torch.stack([each.judged - each.passed for each in verdicts]).amax(dim=0)
    judged = torch.stack([each.judged for each in verdicts]).amax(dim=0)
    return Verdicts((1.0 - failed) * judged, judged)
