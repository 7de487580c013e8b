"""What a section of the benchmarks is made of, and its settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.measure import Ratio
from tests.benchmarks.synthetic import Load

Row = dict[str, str | int | float | Ratio]  # column -> cell


@dataclass(frozen=True)
class Settings:
    """What to measure; `load` is what one optimizer step is made of, `peer_environment` the folder with TRL."""

    load: Load
    sections: tuple[str, ...]
    stages: tuple[int, ...]
    ranks: tuple[int, ...]
    objectives: tuple[int, ...]
    rounds: int
    memory_size: str
    loading_size: str
    growth_sizes: tuple[str, ...]
    growth_objectives: tuple[int, ...]
    output: str | None
    peer_sizes: tuple[str, ...] = ()
    peer_environment: str | None = None

    @property
    def usual_stage(self) -> int:
        """For what is measured under one ZeRO stage: 2 if that is among them."""
        return 2 if 2 in self.stages else self.stages[0]


@dataclass(frozen=True)
class Job:
    """One process group: `function(*arguments)` on every rank (see `run_ranks`).

    `weight`: about how long it takes, for the ETA.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple
    ranks: int
    weight: float


@dataclass(frozen=True)
class Section:
    """A table. `rows` makes it from the settings and the answers of all jobs; `note` says how to read it."""

    title: str
    note: str
    jobs: Callable[[Settings], list[Job]]
    rows: Callable[[Settings, list[Any]], list[Row]]


def by_layout(rows: Callable[..., list[Row]], weight: float) -> Callable[[Settings], list[Job]]:
    """The jobs of a section with a table for every ZeRO stage and number of ranks.

    Args:
        rows: of (load, stage, ranks, objectives, rounds).
    """

    def jobs(settings: Settings) -> list[Job]:
        load, objectives, rounds = settings.load, settings.objectives, settings.rounds
        return [
            Job(f"ZeRO-{stage}, ranks: {ranks}", rows, (load, stage, ranks, objectives, rounds), ranks, weight)
            for stage in settings.stages
            for ranks in settings.ranks
        ]

    return jobs


def in_order(settings: Settings, answers: list[list[Row]]) -> list[Row]:
    """The rows of one job after another."""
    return [row for answer in answers for row in answer]
