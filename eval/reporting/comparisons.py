"""Where a method stands against the others: paired differences with 95% intervals.

The paper's method is compared with every other one that balances the objectives without a preference, its front with
the other fronts weight by weight and as wholes; so is every method of a user's own. Where the paper's are not there,
the last method and the first front take their places. With several seeds the interval is that of the t distribution
over the seeds' differences: it speaks of training runs. With one seed it is a paired bootstrap over prompts: it speaks
of these two policies alone. A difference of means is over the prompts where both responses are judged; hypervolumes are
those of the policies' own means.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from eval.reporting.front_quality import ScoreDraws, SeededFront, find_seeded_fronts, interval
from eval.reporting.units import share_a_unit
from eval.results.methods import Weight, is_own_family, lead_front, lead_run, preference
from eval.results.runs import Run, condition_title, find_conditions, parse_run_name, sort_names

METRIC_TITLES = {
    "average": "average of the model scores",
    "gold_average": "average of the gold scores",
    "hypervolume": "hypervolume, model scores",
    "gold_hypervolume": "hypervolume, gold scores",
}


@dataclass(frozen=True)
class Mean:
    """The mean of a single policy's scores; `columns` are those of the objectives that it is an average of."""

    draws: ScoreDraws
    columns: slice

    def of(self, runs: list[Run]) -> np.ndarray:
        """Of the one run; [1 + RESAMPLES]."""
        return self.average(self.draws.means[runs[0].name.text])

    def difference(self, runs: list[Run], others: list[Run]) -> np.ndarray:
        """Run minus other; [1 + RESAMPLES], NaN where there is no pair of judged responses."""
        one, two = self.draws.paired_means(runs[0], others[0])
        return self.average(one) - self.average(two)

    def pairs(self, runs: list[Run], others: list[Run]) -> int | None:
        """On how many prompts a difference is, of several objectives the fewest; None where it is on all."""
        both = self.draws.judged_by_both(runs[0], others[0])[:, self.columns]
        return None if both.all() else int(both.sum(axis=0).min())

    def average(self, means: np.ndarray) -> np.ndarray:
        return means[:, self.columns].mean(axis=-1)


@dataclass(frozen=True)
class Volume:
    """The hypervolume of runs that stand together."""

    draws: ScoreDraws

    def of(self, runs: list[Run]) -> np.ndarray:
        """[1 + RESAMPLES]."""
        return self.draws.hypervolume(runs)

    def difference(self, runs: list[Run], others: list[Run]) -> np.ndarray:
        """Runs minus others; [1 + RESAMPLES]."""
        return self.of(runs) - self.of(others)

    def pairs(self, runs: list[Run], others: list[Run]) -> int | None:
        """None: it is on all prompts."""


Metric = Mean | Volume


def compare_runs(model: ScoreDraws, gold: ScoreDraws | None) -> list[dict[str, Any]]:
    """Method minus other, one entry a condition, pair and metric.

    An entry is {'condition', 'method', 'other', 'metric', 'difference', 'low', 'high', 'seeds', 'interval'}:
    `seeds` is how many seeds both have, `interval` is 'seeds' or 'prompts'. Where not all responses are judged there
    is 'pairs', too: the prompts where those of both are, of several seeds and objectives the fewest. What has no common
    seed, or no such prompt, is left out. `metric` is 'average' (over objectives that share a unit, else each of
    them), 'hypervolume', 'gold_<objective>', 'gold_average' and 'gold_hypervolume'; a pair of fronts has the
    hypervolumes alone, those of all its compared points together.
    """
    runs = model.runs if gold is None else [run for run in model.runs if run.name.text in gold.means]
    means, volumes = mean_metrics(model, gold), volume_metrics(model, gold)
    entries = []
    for condition in find_conditions(runs):
        members = [run for run in runs if run.name.condition == condition]
        for method, other in [*single_pairs(members, model.objectives), *weighted_pairs(members)]:
            entries += compare(condition, method, other, means | volumes)
        fronts = {front.family: front_runs(front) for front in find_seeded_fronts(members)}
        for method, other in pair_up(list(fronts), lead_front(), list(fronts)[:1]):
            entries += compare(condition, (method, fronts[method]), (other, fronts[other]), volumes)
    return entries


# A name, and the runs behind it by seed: one run, or the points of a front.
Contender = tuple[str, dict[str, list[Run]]]


def pair_up(names: list[str], first: str, substitute: list[str]) -> list[tuple[str, str]]:
    """Every pair that has `first`, or its substitute where it is not there, or a user's own method; each once.

    Args:
        names: of the contenders, in the order of the report.
    """
    own = [name for name in names if is_own_family(parse_run_name(name).family)]
    leading = list(dict.fromkeys([*([first] if first in names else substitute), *own]))
    return [(name, other) for index, name in enumerate(leading) for other in names if other not in leading[: index + 1]]


def single_pairs(runs: list[Run], objectives: list[str]) -> list[tuple[Contender, Contender]]:
    """The pairs of single policies, of runs of one condition."""
    bases: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.name.is_single_method:
            bases.setdefault(run.name.base, {})[run.name.seed] = [run]
    names = sort_names(bases, objectives)
    return [tuple((name, bases[name]) for name in pair) for pair in pair_up(names, lead_run(), names[-1:])]


def weighted_pairs(runs: list[Run]) -> list[tuple[Contender, Contender]]:
    """The pairs of points of two fronts with the same weight, of runs of one condition."""
    families: dict[str, dict[Weight, dict[str, list[Run]]]] = {}
    names: dict[tuple[str, Weight], str] = {}
    for run in runs:
        if run.name.weight is not None:
            points = families.setdefault(run.name.family, {})
            points.setdefault(run.name.weight, {})[run.name.seed] = [run]
            names[run.name.family, run.name.weight] = run.name.base
    order = list(dict.fromkeys(parse_run_name(name).family for name in sort_names(names.values(), [])))
    return [
        tuple((names[family, weight], families[family][weight]) for family in pair)
        for pair in pair_up(order, lead_front(), order[:1])
        for weight in sorted(families[pair[0]].keys() & families[pair[1]].keys(), key=preference)
    ]


def front_runs(front: SeededFront) -> dict[str, list[Run]]:
    return {seed: front.runs(seed) for seed in front.fronts}


def mean_metrics(model: ScoreDraws, gold: ScoreDraws | None) -> dict[str, Metric]:
    """Means of a single policy's scores, by the name of the metric."""
    single = {name: slice(index, index + 1) for index, name in enumerate(model.objectives)}
    columns = {"average": slice(None)} if share_a_unit(model.objectives, model.runs) else single
    metrics: dict[str, Metric] = {name: Mean(model, of) for name, of in columns.items()}
    if gold:
        for index, name in enumerate(gold.objectives):
            metrics[f"gold_{name}"] = Mean(gold, slice(index, index + 1))
        metrics["gold_average"] = Mean(gold, slice(None))
    return metrics


def volume_metrics(model: ScoreDraws, gold: ScoreDraws | None) -> dict[str, Metric]:
    return {"hypervolume": Volume(model), **({"gold_hypervolume": Volume(gold)} if gold else {})}


def compare(condition: str, method: Contender, other: Contender, metrics: dict[str, Metric]) -> list[dict[str, Any]]:
    """One entry a metric; none where the two have no seed in common in which some of their responses are judged."""
    seeds = [(runs, other[1][seed]) for seed, runs in method[1].items() if seed in other[1]]
    names = {"condition": condition_title(condition), "method": method[0], "other": other[0]}
    entries = []
    for name, metric in metrics.items():
        draws = [(pair, found) for pair in seeds if not np.isnan((found := metric.difference(*pair))[0])]
        if not draws:
            continue
        entry = {**names, "metric": name, **difference_interval(np.array([found for _, found in draws]))}
        counts = [count for pair, _ in draws if (count := metric.pairs(*pair)) is not None]
        entries.append(entry | {"seeds": len(draws)} | ({"pairs": min(counts)} if counts else {}))
    return entries


def difference_interval(draws: np.ndarray) -> dict[str, Any]:
    """Differences [seeds, 1 + RESAMPLES] -> {'difference', 'low', 'high', 'interval'}."""
    if len(draws) == 1:
        found = interval(draws[0])
        return {"difference": found["mean"], "low": found["low"], "high": found["high"], "interval": "prompts"}
    observed, count = draws[:, 0], len(draws)
    half_width = t.ppf(0.975, count - 1) * observed.std(ddof=1) / np.sqrt(count)
    mean = float(observed.mean())
    return {"difference": mean, "low": float(mean - half_width), "high": float(mean + half_width), "interval": "seeds"}


def difference_mark(entry: dict[str, Any]) -> str:
    """'ahead' or 'behind' where the interval excludes 0, else ''."""
    if entry["low"] > 0:
        return "ahead"
    return "behind" if entry["high"] < 0 else ""
