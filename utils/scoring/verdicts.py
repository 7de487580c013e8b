"""What a judge says of responses, and what any judge is."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.data.encoding import Encoded
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


class Judge(ABC):
    """One judge; it has a `name`."""

    name: str

    @abstractmethod
    def verdicts(self, sampled: Sampled, scored: Mapping[str, Any], rows: Sequence[int]) -> Verdicts:
        """What it says of some of this rank's responses; of the others it judges none.

        Args:
            scored: {objective: its `Scored`}.
            rows: of the responses that it is asked of.
        """

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Fingerprints of what its verdicts depend on."""

    def try_out(self, prompts: Sequence[Encoded]) -> None:  # noqa: B027  (most need none)
        """Raises: UserError: it cannot judge responses to these prompts; before models are loaded."""

    def loaded(self, args: argparse.Namespace) -> "Judge":
        """With its model, if it has one."""
        return self


def at_rows(values: torch.Tensor | Sequence[float], rows: Sequence[int], batch: int) -> torch.Tensor:
    """Values of some rows among 0 for all others; [batch] float32."""
    found = torch.zeros(batch, device=device())
    found[torch.tensor(rows, dtype=torch.int64, device=device())] = torch.as_tensor(values).to(found)
    return found


def all_verdicts(
    judges: Sequence[Judge],
    sampled: Sampled,
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
        rows = list(range(len(sampled.responses)))
        if asked is not None:
            rows = [row for row, is_asked in enumerate(asked.get(judge.name, ())) if is_asked]
        found[judge.name] = judge.verdicts(sampled, scored, rows)
    return found | {ALL: jointly(list(found.values()))}


def jointly(verdicts: Sequence[Verdicts]) -> Verdicts:
    """A response fails that any judge fails, and passes where one at least has judged it otherwise."""
    failed = torch.stack([each.judged - each.passed for each in verdicts]).amax(dim=0)
    judged = torch.stack([each.judged for each in verdicts]).amax(dim=0)
    return Verdicts((1.0 - failed) * judged, judged)
