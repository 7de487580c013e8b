"""Where a method stands against the others: paired differences with 95% intervals.

GAPO with p=1 is compared with every other method that balances the objectives without a preference, P-GAPO with
MORLHF and Rewarded Soups weight by weight and front by front. With several seeds the interval is that of the t
distribution over the seeds' differences: it speaks of training runs. With one seed it is a paired bootstrap over
prompts: it speaks of these two policies alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import t

from eval.reporting.front_quality import ScoreDraws, SeededFront, find_seeded_fronts, interval
from eval.results.runs import SINGLE_RUNS, Run, condition_title, find_conditions

METHOD = "gapo_p1"
FRONT, OTHER_FRONTS = "p_gapo", ("morlhf", "rewarded_soup")
Metric = Callable[[list[Run]], np.ndarray]  # runs that stand together -> [1 + RESAMPLES]


def compare_runs(model: ScoreDraws, gold: ScoreDraws | None) -> list[dict[str, Any]]:
    """Method minus other, one entry a condition, pair and metric.

    An entry is {'condition', 'method', 'other', 'metric', 'difference', 'low', 'high', 'seeds', 'interval'}:
    `seeds` is how many seeds both have, `interval` is 'seeds' or 'prompts'. Pairs without a common seed are left
    out. `metric` is 'average' (over objectives), 'hypervolume', 'gold_<objective>', 'gold_average' and
    'gold_hypervolume'; a pair of fronts has the hypervolumes alone, those of all its compared points together.
    """
    runs = model.runs if gold is None else [run for run in model.runs if run.name.text in gold.means]
    means, volumes = mean_metrics(model, gold), volume_metrics(model, gold)
    entries = []
    for condition in find_conditions(runs):
        members = [run for run in runs if run.name.condition == condition]
        for method, other in find_pairs(members):
            entries += compare(condition, method, other, means | volumes)
        fronts = {front.family: front for front in find_seeded_fronts(members)}
        for other in OTHER_FRONTS:
            if FRONT in fronts and other in fronts:
                pair = ((name, front_runs(fronts[name])) for name in (FRONT, other))
                entries += compare(condition, *pair, volumes)
    return entries


# A name, and the runs behind it by seed: one run, or the points of a front.
Contender = tuple[str, dict[str, list[Run]]]


def find_pairs(runs: list[Run]) -> list[tuple[Contender, Contender]]:
    """The pairs of single policies, of runs of one condition."""
    bases: dict[str, dict[str, list[Run]]] = {}
    weighted: dict[tuple[str, float], str] = {}
    for run in runs:
        bases.setdefault(run.name.base, {})[run.name.seed] = [run]
        if run.name.weight is not None:
            weighted[run.name.family, run.name.weight] = run.name.base
    names = [(METHOD, other) for other in SINGLE_RUNS if other != METHOD]
    names += [
        (weighted[FRONT, weight], weighted.get((family, weight), ""))
        for family in OTHER_FRONTS
        for weight in sorted(weight for front, weight in weighted if front == FRONT)
    ]
    return [tuple((name, bases[name]) for name in pair) for pair in names if all(name in bases for name in pair)]


def front_runs(front: SeededFront) -> dict[str, list[Run]]:
    return {seed: front.runs(seed) for seed in front.fronts}


def mean_metrics(model: ScoreDraws, gold: ScoreDraws | None) -> dict[str, Metric]:
    """Means of a single policy's scores, by the name of the metric."""
    metrics: dict[str, Metric] = {"average": lambda runs: model.points(runs)[:, 0].mean(axis=-1)}
    if gold:
        for index, name in enumerate(gold.objectives):
            metrics[f"gold_{name}"] = lambda runs, index=index: gold.points(runs)[:, 0, index]
        metrics["gold_average"] = lambda runs: gold.points(runs)[:, 0].mean(axis=-1)
    return metrics


def volume_metrics(model: ScoreDraws, gold: ScoreDraws | None) -> dict[str, Metric]:
    return {"hypervolume": model.hypervolume, **({"gold_hypervolume": gold.hypervolume} if gold else {})}


def compare(condition: str, method: Contender, other: Contender, metrics: dict[str, Metric]) -> list[dict[str, Any]]:
    """One entry a metric; nothing where the two have no seed in common."""
    seeds = [seed for seed in method[1] if seed in other[1]]
    if not seeds:
        return []
    return [
        {
            "condition": condition_title(condition),
            "method": method[0],
            "other": other[0],
            "metric": name,
            **difference_interval(np.array([metric(method[1][seed]) - metric(other[1][seed]) for seed in seeds])),
            "seeds": len(seeds),
        }
        for name, metric in metrics.items()
    ]


def difference_interval(draws: np.ndarray) -> dict[str, Any]:
    """Differences [seeds, 1 + RESAMPLES] -> {'difference', 'low', 'high', 'interval'}."""
    if len(draws) == 1:
        found = interval(draws[0])
        return {"difference": found["mean"], "low": found["low"], "high": found["high"], "interval": "prompts"}
    observed, count = draws[:, 0], len(draws)
    half_width = t.ppf(0.975, count - 1) * observed.std(ddof=1) / np.sqrt(count)
    mean = float(observed.mean())
    return {"difference": mean, "low": float(mean - half_width), "high": float(mean + half_width), "interval": "seeds"}
