"""What a stage trains on an example, and what came of a run."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from utils.data.encoding import Encoded


class Stateful(Protocol):
    """What has to be known of it where a run goes on, as JSON."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Step = Callable[[list[list[Encoded]]], tuple[dict[str, float], str | None]]


@dataclass
class Task:
    """What tells one supervised stage from another.

    Its steps are those of `units` and `sums`, a mean loss over units, or of `step`.

    Attributes:
        train: the training examples.
        validate: figures on the validation data, the same on every rank; "loss" chooses the best epoch.
        shown: those of the figures that progress lines show.
        units: how much an example weighs: its response tokens for a language model, 1 for a preference pair.
        sums: sums over the units of some examples on this rank; "loss" carries the graph, others are logged.
        step: takes an optimizer step on this rank's micro-batches: its figures; what was not finite, for which the step
            was skipped, if anything.
        state: what of the task a checkpoint keeps beside its engine.
        before: figures of what came before the first step.
        groups: of each training example; every step has its share of every group.
        again: what an example is that has to be in a step once more (see `epoch_steps`).
    """

    train: list[Encoded]
    validate: Callable[[], dict[str, float]]
    shown: tuple[str, ...]
    units: Callable[[Encoded], float] | None = None
    sums: Callable[[list[Encoded]], dict[str, torch.Tensor]] | None = None
    step: Step | None = None
    state: Stateful | None = None
    before: dict[str, float] = field(default_factory=dict)
    groups: Sequence[Hashable] | None = None
    again: Callable[[Encoded], Encoded] = lambda example: example


@dataclass
class Outcome:
    """How a run went: validation figures before training (index 0) and after each epoch; what was kept."""

    validation: list[dict[str, float]]
    exported_epoch: int
    seconds: float
