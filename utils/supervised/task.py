"""What a stage trains on an example, and what came of a run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.data.encoding import Encoded


@dataclass
class Task:
    """What tells one supervised stage from another.

    Attributes:
        train: the training examples.
        units: how much an example weighs: its response tokens for a language model, 1 for a preference pair.
        sums: sums over the units of some examples on this rank; "loss" carries the graph, others are logged.
        validate: figures on the validation data, the same on every rank; "loss" chooses the best epoch.
        shown: those of the figures that progress lines show.
    """

    train: list[Encoded]
    units: Callable[[Encoded], int]
    sums: Callable[[list[Encoded]], dict[str, torch.Tensor]]
    validate: Callable[[], dict[str, float]]
    shown: tuple[str, ...]


@dataclass
class Outcome:
    """How a run went: validation figures before training (index 0) and after each epoch; what was kept."""

    validation: list[dict[str, float]]
    exported_epoch: int
    seconds: float
