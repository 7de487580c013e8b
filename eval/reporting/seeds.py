"""Runs that differ in their seed alone, taken together: means over seeds, and how far seeds lie apart.

A `RunGroup` is a `Run` whose figures are means over its seeds, so tables, curves and fronts show either.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.results.runs import Run, parse_run_name

Metrics = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class RunGroup(Run):
    """All seeds of one base and condition; `name` is without a seed.

    Attributes:
        evaluation: means over seeds in the shape of one evaluation, without rows. With several seeds, 'sd' holds
            the sample standard deviations in the same shape, and no 'ci95' stands beside a mean; with one seed it
            is that run's own evaluation.
        metrics: means over seeds of the steps that every seed logged.
        runs: one run a seed, in the order of the report.
    """

    runs: list[Run] = field(default_factory=list)

    @property
    def seeds(self) -> list[int | None]:
        """The seeds as far as settings or names tell them."""
        return [run.seed for run in self.runs]

    @property
    def metrics_sd(self) -> Metrics:
        """Sample standard deviations over seeds of `metrics`; empty with one seed."""
        return reduce_metrics(self.runs, lambda values: np.std(values, ddof=1)) if len(self.runs) > 1 else {}


def group_runs(runs: list[Run]) -> list[RunGroup]:
    """Runs of the same base and condition together, in the order in which groups are first met."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(run.name.group, []).append(run)
    return [build_group(name, seeds) for name, seeds in members.items()]


def build_group(name: str, runs: list[Run]) -> RunGroup:
    if len(runs) == 1:
        return RunGroup(parse_run_name(name), runs[0].evaluation, runs[0].metrics, runs)
    means = reduce_figures(runs, statistics.fmean)
    evaluation = {
        "run": name,
        "args": shared_args(runs),
        **as_evaluation(means),
        "sd": reduce_figures(runs, statistics.stdev),
    }
    return RunGroup(parse_run_name(name), evaluation, reduce_metrics(runs, np.mean), runs)


def shared_args(runs: list[Run]) -> dict[str, Any]:
    """The settings that are the same in all runs."""
    first, *others = (run.args for run in runs)
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def reduce_figures(runs: list[Run], reduce: Callable[[list[float]], float]) -> dict[str, Any]:
    """{'objectives': {name: figure}, 'harmless_ratio', 'average', 'kl', 'response_length', 'cost': {key: figure},
    'gold': likewise}.

    A figure that some run lacks is None; 'gold' is there where all runs have gold scores.
    """
    evaluations = [run.evaluation for run in runs]
    figures = {
        **reduce_scores(evaluations, reduce),
        "kl": reduce_entries([evaluation.get("kl") for evaluation in evaluations], reduce),
        "response_length": reduce_entries([evaluation.get("response_length") for evaluation in evaluations], reduce),
    }
    costs = [evaluation.get("cost") or {} for evaluation in evaluations]
    figures["cost"] = {key: reduce([cost[key] for cost in costs]) for key in costs[0] if all(key in c for c in costs)}
    if all(run.gold for run in runs):
        figures["gold"] = reduce_scores([run.gold for run in runs], reduce)
    return figures


def reduce_scores(scores: list[dict[str, Any]], reduce: Callable[[list[float]], float]) -> dict[str, Any]:
    """The same for model scores or gold scores alone; objectives that all runs have."""
    names = [name for name in scores[0]["objectives"] if all(name in entry["objectives"] for entry in scores)]
    return {
        "objectives": {name: reduce([entry["objectives"][name]["mean"] for entry in scores]) for name in names},
        "harmless_ratio": reduce_entries([entry.get("harmless_ratio") for entry in scores], reduce),
        "average": reduce_entries([entry.get("average") for entry in scores], reduce),
    }


def reduce_entries(values: list[float | None], reduce: Callable[[list[float]], float]) -> float | None:
    return None if any(value is None for value in values) else reduce(values)


def as_evaluation(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of `reduce_figures` with every objective as {'mean': figure}, as an evaluation has it."""
    objectives = {name: {"mean": value} for name, value in figures["objectives"].items()}
    shaped = {**figures, "objectives": objectives}
    return {**shaped, "gold": as_evaluation(figures["gold"])} if "gold" in figures else shaped


def reduce_metrics(runs: list[Run], reduce: Callable[[np.ndarray], float]) -> Metrics:
    """Training metrics over seeds: tags and steps that every run logged; NaN where a value is not finite."""
    series: Metrics = {}
    for tag in runs[0].metrics:
        by_step = [dict(run.metrics.get(tag, [])) for run in runs]
        steps = [step for step in by_step[0] if all(step in values for values in by_step)]
        columns = np.array([[values[step] for values in by_step] for step in steps])
        columns = np.where(np.isfinite(columns), columns, np.nan)
        if steps:
            series[tag] = [(step, float(reduce(column))) for step, column in zip(steps, columns, strict=True)]
    return series
