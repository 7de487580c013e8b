"""How good a set of trade-offs is, as numbers: hypervolume, spacing, share of dominated points, with intervals.

Objectives are higher-is-better. Intervals are 95% percentile bootstrap intervals: test prompts are resampled
jointly for all runs, which answered the same prompts, and so are the seeds of a method where it has several.
The training itself is not repeated, so an interval of few seeds is narrower than the truth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.reporting.seeds import group_runs
from eval.results.methods import START, Weight, preference
from eval.results.runs import Front, Run, condition_title, find_fronts, find_stand_ins, objective_names

RESAMPLES = 2000
BOOTSTRAP_SEED = 20250707
PERCENTILES = (2.5, 97.5)
PARTS = {"model": "scores", "gold": "gold"}  # kind of score: its part of an evaluation's rows
BYTES_AT_ONCE = 2**26  # of resampling weights


# ---- quality of points -------------------------------------------------------------------------------------


def hypervolume(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Volume that is dominated by the points and dominates the reference (Zitzler and Thiele 1998), exact.

    Args:
        points: [..., n, m], higher is better; what does not exceed the reference everywhere contributes nothing.
        reference: [m].

    Returns:
        [...] float64 in the product of the objectives' units; 0 without points.
    """
    return _union_volume(np.maximum(np.asarray(points, dtype=float) - reference, 0))


def _union_volume(boxes: np.ndarray) -> np.ndarray:
    """Volume of the union of boxes [..., n, m] that have one corner at the origin: slices along the last axis."""
    if boxes.shape[-1] == 1:
        return boxes[..., 0].max(axis=-1, initial=0.0)
    order = np.argsort(-boxes[..., -1], axis=-1)
    boxes = np.take_along_axis(boxes, order[..., None], axis=-2)
    tops = boxes[..., -1]
    thickness = tops - np.concatenate([tops[..., 1:], np.zeros_like(tops[..., :1])], axis=-1)
    volume = np.zeros(tops.shape[:-1])
    for index in range(tops.shape[-1]):
        # The slice below this box's top and above the next one's lies in this box and all higher ones.
        volume = volume + thickness[..., index] * _union_volume(boxes[..., : index + 1, :-1])
    return volume


def spacing(points: np.ndarray) -> np.ndarray:
    """Schott's spacing (1995): standard deviation of the distances to the nearest neighbor; 0 is evenly spaced.

    Distances are L1. All points count, dominated or not, so that sets of as many points are compared.

    Args:
        points: [..., n, m].

    Returns:
        [...] float64 in the objectives' units; NaN for n < 3, where there is nothing that could be uneven.
    """
    points = np.asarray(points, dtype=float)
    count = points.shape[-2]
    if count < 3:
        return np.full(points.shape[:-2], np.nan)
    distances = np.abs(points[..., :, None, :] - points[..., None, :, :]).sum(axis=-1)
    distances = distances + np.diag(np.full(count, np.inf))
    return distances.min(axis=-1).std(axis=-1, ddof=1)


def dominated_share(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the points that some other one dominates: nowhere below and somewhere above.

    Args:
        points: [..., n, m] of one method.
        others: [..., k, m] of other methods.

    Returns:
        [...] float64 in [0, 1].
    """
    points, others = np.asarray(points)[..., :, None, :], np.asarray(others)[..., None, :, :]
    dominated = (others >= points).all(axis=-1) & (others > points).any(axis=-1)
    return dominated.any(axis=-1).mean(axis=-1)


# ---- resampling --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreDraws:
    """Mean scores of all runs on the prompts that they share, as observed and on resampled prompts.

    Attributes:
        objectives: m names.
        runs: the runs that have them all.
        values: {run: [prompts, m] float64} on the prompts that all runs answered; NaN where a response is not judged.
        means: {run: [1 + RESAMPLES, m] float64}; row 0 is observed, the others are bootstrap draws, in which row b
            of every run has the same prompts.
        reference: [m], see `reference_point`.
    """

    objectives: list[str]
    runs: list[Run]
    values: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    reference: np.ndarray

    @property
    def prompts(self) -> int:
        """Number of prompts that all runs answered."""
        return len(next(iter(self.values.values())))

    def points(self, runs: list[Run]) -> np.ndarray:
        """[1 + RESAMPLES, runs, m]."""
        return np.stack([self.means[run.name.text] for run in runs], axis=1)

    def hypervolume(self, runs: list[Run]) -> np.ndarray:
        """[1 + RESAMPLES], of the runs together."""
        return hypervolume(self.points(runs), self.reference)

    def judged_by_both(self, run: Run, other: Run) -> np.ndarray:
        """[prompts, m] bool: whether the responses of both are judged."""
        return ~np.isnan(self.values[run.name.text] + self.values[other.name.text])

    def paired_means(self, run: Run, other: Run) -> tuple[np.ndarray, np.ndarray]:
        """Their means over the prompts where both are judged; [1 + RESAMPLES, m] each, NaN where there is no such one.

        Prompts are drawn as for `means`.
        """
        both = self.judged_by_both(run, other)
        if both.all():
            return self.means[run.name.text], self.means[other.name.text]
        pair = np.stack([self.values[run.name.text], self.values[other.name.text]], axis=1)
        drawn = resample_means(np.where(both[:, None], pair, np.nan))
        return drawn[:, 0], drawn[:, 1]


def draw_scores(runs: list[Run], scores: str = "model") -> ScoreDraws | None:
    """Observed and resampled means of 'model' or 'gold' scores.

    None where there are none, or where the runs share fewer than two prompts. A run is left out where an objective
    judges none of its responses to the shared prompts.
    """
    part = PARTS[scores]
    evaluations = [(run.evaluation if scores == "model" else run.gold) or {} for run in runs]
    names = objective_names(evaluations)
    complete = [
        run
        for run, found in zip(runs, evaluations, strict=True)
        if names and set(names) <= set(found["objectives"] if found else ())
    ]
    rows = [{row["source"]: row[part] for row in run.evaluation["rows"]} for run in complete]
    shared = [source for source in rows[0] if all(source in found for found in rows)] if rows else []
    if len(shared) < 2:
        return None
    scores = [[[found[source][name] for name in names] for found in rows] for source in shared]
    values = np.array(scores, dtype=float)  # null, no judgement, is NaN
    drawn = resample_means(values)
    judged = [index for index in range(len(complete)) if not np.isnan(drawn[0, index]).any()]
    if not judged:
        return None
    kept = [complete[index] for index in judged]
    by_run, means = ({run.name.text: found[:, i] for i, run in zip(judged, kept, strict=True)}
                     for found in (values, drawn))  # fmt: skip
    return ScoreDraws(names, kept, by_run, means, reference_point(kept, names, means))


def resample_means(values: np.ndarray) -> np.ndarray:
    """Means over prompts [prompts, runs, m] -> [1 + RESAMPLES, runs, m]: observed, then with resampled prompts.

    NaN counts for nothing; a column of nothing else has no means (NaN). A draw without any other value of a column has
    the observed mean, which makes a difference where five values or so are all there are.
    """
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    count = len(values)
    flat = values.reshape(count, -1)
    judged = ~np.isnan(flat)
    flat, weights = np.where(judged, flat, 0.0), judged.astype(float)
    observed = divide(flat.sum(axis=0), weights.sum(axis=0), np.nan)
    means, left = [observed[None]], RESAMPLES
    while left:
        rows = min(left, max(1, BYTES_AT_ONCE // (8 * count)))
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=rows)
        counts = np.full(flat.shape[1], count) if judged.all() else drawn @ weights
        means.append(divide(drawn @ flat, counts, observed))
        left -= rows
    return np.concatenate(means).reshape(1 + RESAMPLES, *values.shape[1:])


def divide(sums: np.ndarray, counts: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """sums / counts, `otherwise` where a count is 0; float64."""
    found = np.broadcast_to(np.asarray(otherwise, dtype=float), sums.shape).copy()
    return np.divide(sums, counts, out=found, where=counts > 0)


def reference_point(runs: list[Run], objectives: list[str], means: dict[str, np.ndarray]) -> np.ndarray:
    """The reference of hypervolumes, the same for all conditions; [m] float64.

    The nadir of the payoff table of the single-objective experts: for each objective the lowest mean among the
    experts (`ppo_<objective>`) of the default condition, each averaged over its seeds. Where an expert is missing or
    there is one objective: the lowest mean among all runs.
    """
    experts = [
        [means[run.name.text][0] for run in runs if run.name.objective == name and not run.name.condition]
        for name in objectives
    ]
    if len(objectives) > 1 and all(experts):
        return np.min([np.mean(seeds, axis=0) for seeds in experts], axis=0)
    return np.min([means[run.name.text][0] for run in runs], axis=0)


def average_seeds(values: np.ndarray) -> np.ndarray:
    """[seeds, 1 + RESAMPLES] -> [1 + RESAMPLES]: the mean over seeds as observed, then over seeds drawn anew.

    Methods with as many seeds get the same draws, so that seeds stay paired.
    """
    count, draws = values.shape
    drawn = np.random.default_rng([BOOTSTRAP_SEED, count]).integers(count, size=(count, draws))
    drawn[:, 0] = np.arange(count)
    return np.take_along_axis(values, drawn, axis=0).mean(axis=0)


def interval(draws: np.ndarray) -> dict[str, float]:
    """Draws [1 + RESAMPLES], the first one observed -> {'mean', 'low', 'high'}."""
    low, high = np.percentile(draws[1:], PERCENTILES)
    return {"mean": float(draws[0]), "low": float(low), "high": float(high)}


# ---- fronts and rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeededFront:
    """A method's front under one condition: `fronts` has one entry a seed (a name's seed, '' for the preset's).

    `weights` are those on which it is compared with the other fronts of its condition.
    """

    family: str
    condition: str
    weights: list[Weight]
    fronts: dict[str, Front]

    def runs(self, seed: str) -> list[Run]:
        """The compared points of one seed, by weight."""
        return [run for weight, run in self.fronts[seed].points if weight in self.weights]


def find_seeded_fronts(runs: list[Run]) -> list[SeededFront]:
    """The fronts of all conditions, each condition's on the weights that all of its fronts and seeds have.

    Where fewer than two weights are common to them, every front keeps those that its own seeds have in common; a
    front whose seeds have none in common is left out.
    """
    found: dict[tuple[str, str], dict[str, Front]] = {}
    for front in find_fronts(runs):
        name = front.points[0][1].name
        found.setdefault((front.family, name.condition), {})[name.seed] = front
    result = []
    for (family, condition), fronts in found.items():
        rivals = [front for key, seeds in found.items() if key[1] == condition for front in seeds.values()]
        common = common_weights(rivals)
        weights = common if len(common) > 1 else common_weights(list(fronts.values()))
        if weights:
            result.append(SeededFront(family, condition, weights, fronts))
    return result


def common_weights(fronts: list[Front]) -> list[Weight]:
    return sorted(set.intersection(*({weight for weight, _ in front.points} for front in fronts)), key=preference)


def find_rivals(runs: list[Run], front: Front) -> list[Run]:
    """Runs of other methods under the front's condition and seed; SFT, which step 3 starts from, has every seed."""
    name, own = front.points[0][1].name, {run.name.text for _, run in front.points}
    members = [run for run in runs if run.name.condition == name.condition] + find_stand_ins(runs, name.condition)
    return [
        run
        for run in members
        if run.name.text not in own and (run.name.seed == name.seed or run.name.row.place == START)
    ]


def front_quality(draws: ScoreDraws) -> list[dict[str, Any]]:
    """One entry a front (method and condition): its points' hypervolume, spacing and dominated share.

    The three are {'mean', 'low', 'high'} of means over seeds; spacing is None for fewer than three points.
    'dominated_share' is that of the front's points which a policy of another method dominates, same condition
    and seed.
    """
    entries = []
    for front in find_seeded_fronts(draws.runs):
        points = {seed: draws.points(front.runs(seed)) for seed in front.fronts}
        rivals = {
            seed: draws.points(found) for seed in points if (found := find_rivals(draws.runs, front.fronts[seed]))
        }
        figures = {
            "hypervolume": [hypervolume(drawn, draws.reference) for drawn in points.values()],
            "spacing": [spacing(drawn) for drawn in points.values()],
            "dominated_share": [dominated_share(points[seed], others) for seed, others in rivals.items()],
        }
        entries.append(
            {
                "front": front.family,
                "condition": condition_title(front.condition),
                "weights": front.weights,
                "points": len(front.weights),
                "seeds": [front.runs(seed)[0].seed for seed in points],
                **{name: summarize(values) for name, values in figures.items()},
            }
        )
    return entries


def summarize(values: list[np.ndarray]) -> dict[str, float] | None:
    """Draws of every seed -> interval of their mean; None where there is nothing to tell."""
    if not values or np.isnan(values).any():
        return None
    return interval(average_seeds(np.array(values)))


def row_hypervolumes(draws: ScoreDraws) -> dict[str, dict[str, float]]:
    """{group of runs: interval of the mean over its seeds}: the box between each policy and the reference."""
    return {
        group.name.text: interval(average_seeds(np.array([draws.hypervolume([run]) for run in group.runs])))
        for group in group_runs(draws.runs)
    }
