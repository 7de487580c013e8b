"""How much the objectives' gradients were in conflict during training, in figures and as a picture.

Everything comes from the `gradient/*` scalars of metrics.jsonl. Runs without them (a single
objective, or fixed weights and no look at the gradients) have no such figures and are left out.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from eval.reporting.curves import (
    CURVES,
    Curve,
    curve_colors,
    draw_curve,
    make_curve,
    mark_steps,
    method_rows,
    panel_grid,
    row_legend,
    use_log_scale,
)
from eval.reporting.plots import save
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import Column, Table, fill_table
from eval.results.runs import Run, condition_title, find_conditions, objective_names

MOST_PAIRS = 3  # rows of the picture and column groups of the table
BALANCE, CONFLICT = "#888888", "#FBF0EE"


@dataclass(frozen=True)
class Pair:
    """Two objectives; the norm ratio is that of the first against the second."""

    first: str
    second: str

    @property
    def key(self) -> str:
        """Its name in tags and in results.json."""
        return f"{self.first}_{self.second}"

    @property
    def label(self) -> str:
        return f"{self.first} / {self.second}"


@dataclass(frozen=True)
class Trace:
    """A pair in one run over training; all [steps] float64, NaN where there is no finite figure.

    Attributes:
        steps: training steps that logged anything of the pair.
        cosine: between the two gradients, in [-1, 1]; NaN where one of them is zero or not finite.
        norm_ratio: norm of the first gradient over that of the second, > 0; NaN likewise.
    """

    steps: np.ndarray
    cosine: np.ndarray
    norm_ratio: np.ndarray


@dataclass(frozen=True)
class Conflict:
    """What the report shows: the pairs, how many there are in all, the runs shown and left out, the table."""

    pairs: list[Pair]
    pair_count: int
    runs: list[RunGroup]
    left_out: list[RunGroup]
    table: Table

    @property
    def caption(self) -> str:
        """What the picture shows, for readers who never saw one."""
        first = self.pairs[0].first if len(self.pairs) == 1 else "the first objective of the pair"
        second = self.pairs[0].second if len(self.pairs) == 1 else "the second"
        sentences = [
            "Left: the cosine between the gradients of two objectives. Below 0 (shaded), an update that helps one by"
            " following its gradient alone hurts the other; at −1 they are exact opposites.",
            f"Right: how many times longer the gradient of {first} is than that of {second}. Far from 1, a plain sum"
            " of the two follows the longer one.",
        ]
        if len(self.pairs) < self.pair_count:
            sentences.append(
                f"Of {self.pair_count} pairs, those with the {len(self.pairs)} lowest mean cosines are shown."
            )
        if self.left_out:
            names = ", ".join(run.name.label for run in self.left_out)
            sentences.append(f"Left out are runs of one objective, or without --log_gradients: {names}.")
        return " ".join(sentences)

    @property
    def table_note(self) -> str:
        """What the columns of the table mean."""
        return (
            "Over all training steps: mean cosine and percent of steps with a cosine below 0; median ratio of the"
            " norms, first objective over second; all improve: percent of steps whose update improves every objective"
            " to first order (a positive inner product with each gradient)."
        )


# ---- figures -----------------------------------------------------------------------------------------------


def read_values(run: Run, tag: str, steps: list[int]) -> np.ndarray:
    """A tag's values at `steps`, float64; NaN where it is absent or not finite."""
    by_step = dict(run.metrics.get(tag, []))
    values = np.array([by_step.get(step, np.nan) for step in steps])
    return np.where(np.isfinite(values), values, np.nan)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient, NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def trace_pair(run: Run, pair: Pair) -> Trace | None:
    """The pair's course through a run, or None where the run logged no gradients of both."""
    cosine_tag = f"gradient/cosine/{pair.key}"
    if cosine_tag not in run.metrics:  # a run may name its objectives in the other order
        cosine_tag = f"gradient/cosine/{pair.second}_{pair.first}"
    tags = [cosine_tag, f"gradient/norm/{pair.first}", f"gradient/norm/{pair.second}"]
    if any(tag not in run.metrics for tag in tags):
        return None
    steps = sorted({step for tag in tags for step, _ in run.metrics[tag]})
    cosine, *norms = (read_values(run, tag, steps) for tag in tags)
    norms = [np.where(norm == 0, np.nan, norm) for norm in norms]
    return Trace(
        steps=np.array(steps, dtype=float),
        cosine=np.where(np.isnan(norms).any(axis=0), np.nan, cosine),
        norm_ratio=divide(*norms),
    )


def summarize(reduce: Callable[[np.ndarray], float], values: np.ndarray) -> float | None:
    """`reduce` of the values that are not NaN, None without any."""
    found = values[~np.isnan(values)]
    return float(reduce(found)) if len(found) else None


def common_progress(run: Run) -> float | None:
    """Percent of the steps that improve every objective to first order: ⟨update, g_i⟩ > 0 for all i."""
    tags = [tag for tag in run.metrics if tag.startswith("gradient/progress/")]
    steps = sorted({step for tag in tags for step, _ in run.metrics[tag]})
    if not steps:
        return None
    least = np.min([read_values(run, tag, steps) for tag in tags], axis=0)
    return summarize(lambda found: 100 * (found > 0).mean(), least)


def find_pairs(runs: list[Run]) -> list[Pair]:
    """All pairs of objectives with gradients in some run, in the objectives' order."""
    logged = [tag.removeprefix("gradient/norm/") for run in runs for tag in run.metrics if "gradient/norm/" in tag]
    names = [*objective_names(run.evaluation for run in runs), *logged]
    pairs = [Pair(*names) for names in combinations(dict.fromkeys(names), 2)]
    return [pair for pair in pairs if any(trace_pair(run, pair) for run in runs)]


def conflict_figures(run: Run, pairs: list[Pair]) -> dict[str, Any] | None:
    """The entry 'conflict' of results.json: means, medians and percents over the steps where they are defined.

    None for a run that logged no gradients of two objectives.
    """
    entries = {}
    for pair in pairs:
        if trace := trace_pair(run, pair):
            entries[pair.key] = {
                "mean_cosine": summarize(np.mean, trace.cosine),
                "negative_cosine_percent": summarize(lambda found: 100 * (found < 0).mean(), trace.cosine),
                "median_norm_ratio": summarize(np.median, trace.norm_ratio),
            }
    return {"pairs": entries, "common_progress_percent": common_progress(run)} if entries else None


def most_opposed(pairs: list[Pair], figures: list[dict[str, Any]]) -> list[Pair]:
    """The pairs to show: all of them, or, of many, those with the lowest mean cosine over the runs."""

    def mean_cosine(pair: Pair) -> float:
        found = [entry["pairs"].get(pair.key, {}).get("mean_cosine") for entry in figures]
        return np.mean([value for value in found if value is not None] or [np.inf])

    chosen = sorted(pairs, key=mean_cosine)[:MOST_PAIRS]
    return [pair for pair in pairs if pair in chosen]


def conflict_columns(pairs: list[Pair]) -> list[Column]:
    """Three columns a pair, and whether updates helped everybody."""
    columns = []
    for pair in pairs:
        path, prefix = ("pairs", pair.key), f"{pair.label}: " if len(pairs) > 1 else ""
        columns += [
            Column((*path, "mean_cosine"), pair.label, "cosine", ranked=False, prefix=prefix),
            Column((*path, "negative_cosine_percent"), pair.label, "below 0, %", 0, ranked=False, prefix=prefix),
            Column((*path, "median_norm_ratio"), pair.label, "norm ratio", ranked=False, prefix=prefix),
        ]
    return [*columns, Column(("common_progress_percent",), "update", "all improve, %", 0, ranked=False)]


def average_figures(entries: list[Any]) -> Any:
    """Figures of several seeds of the same shape -> their means; a figure counts where it is not None."""
    if isinstance(entries[0], dict):
        return {key: average_figures([entry[key] for entry in entries]) for key in entries[0]}
    found = [entry for entry in entries if entry is not None]
    return sum(found) / len(found) if found else None


def group_figures(group: RunGroup, pairs: list[Pair]) -> dict[str, Any] | None:
    """`conflict_figures`, averaged over seeds; None where a seed has none."""
    entries = [conflict_figures(run, pairs) for run in group.runs]
    return average_figures(entries) if all(entries) else None


def find_conflict(groups: list[RunGroup]) -> Conflict | None:
    """What there is to show, or None where no run logged the gradients of two objectives."""
    pairs = find_pairs(groups)
    rows = [(group, figures) for group in groups if (figures := group_figures(group, pairs))]
    if not rows:
        return None
    shown = most_opposed(pairs, [figures for _, figures in rows])
    with_figures = [group for group, _ in rows]
    left_out = [group for group in groups if group.metrics and group not in with_figures]
    return Conflict(shown, len(pairs), with_figures, left_out, fill_table(conflict_columns(shown), rows))


# ---- picture -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairCurves:
    """A pair in one group of runs; the ratio is its natural logarithm, so that 2 and 1/2 are equally far from 0."""

    cosine: Curve
    log_ratio: Curve


def pair_curves(group: RunGroup, pair: Pair) -> PairCurves | None:
    """Means over seeds of cosine and log ratio at the steps that all seeds have."""
    traces = [trace_pair(run, pair) for run in group.runs]
    if any(trace is None for trace in traces):
        return None
    steps = np.array(sorted(set.intersection(*(set(trace.steps) for trace in traces))))

    def curve(read: Callable[[Trace], np.ndarray]) -> Curve:
        seeds = [dict(zip(trace.steps, read(trace), strict=True)) for trace in traces]
        values = np.mean([[seed[step] for step in steps] for seed in seeds], axis=0)
        return make_curve(group, steps, values, seeds)

    return PairCurves(curve(lambda trace: trace.cosine), curve(lambda trace: np.log(trace.norm_ratio)))


def plot_conflict(conflict: Conflict, groups: list[RunGroup], path: Path) -> None:
    """conflict.png: a row a condition and group of methods; the cosines of all pairs, and beside them the norm ratios.

    Args:
        groups: all groups of the report, so that a group has the color it has among the training curves.
    """
    colors = curve_colors([group for group in groups if group.metrics])
    conditions = find_conditions(conflict.runs)
    rows = [
        (condition, members)
        for condition in conditions
        for members in method_rows([group for group in conflict.runs if group.name.condition == condition])
    ]
    count = len(conflict.pairs)
    with plt.rc_context(CURVES):
        figure, panels = panel_grid(len(rows), 2 * count)
        for index, pair in enumerate(conflict.pairs):
            own = panels[:, [index, count + index]]
            for cells, (condition, members) in zip(own, rows, strict=True):
                draw_pair(cells, pair, members, colors)
                name_panels(cells, pair, condition, len(conditions) > 1)
            set_ranges(own, [curves for group in conflict.runs if (curves := pair_curves(group, pair))])
        for row, (_, members) in zip(panels, rows, strict=True):
            row_legend(row[-1], members, colors)
        save(figure, path)


def draw_pair(panels: np.ndarray, pair: Pair, groups: Sequence[RunGroup], colors: dict[str, tuple[float, ...]]) -> None:
    """The curves of the groups that have some, in the panels of cosine and ratio."""
    for group in groups:
        if curves := pair_curves(group, pair):
            draw_curve(panels[0], curves.cosine, colors[group.name.text])
            draw_curve(panels[1], curves.log_ratio, colors[group.name.text], np.exp)


def name_panels(row: np.ndarray, pair: Pair, condition: str, several: bool) -> None:
    """Words and lines of balance."""
    suffix = f" ({condition_title(condition)})" if several else ""
    words = (
        ("cosine of the gradients", f"{pair.first}, {pair.second}", 0.0),
        ("ratio of their norms", pair.label, 1.0),
    )
    for axes, (title, y_label, balance) in zip(row, words, strict=True):
        axes.set_title(title + suffix, loc="left")
        axes.set_ylabel(textwrap.fill(y_label, 18))
        axes.axhline(balance, color=BALANCE, linewidth=1.0, zorder=1.5)
        mark_steps(axes)


def set_ranges(rows: np.ndarray, curves: list[PairCurves]) -> None:
    """The same ranges in all rows of a pair.

    The ratio's is logarithmic and symmetric about 1, so that the longer gradient is seen at a glance. It goes four
    times as far as the strong lines at most: a single step with next to no gradient must not set it.
    """
    cosines = np.concatenate([found.cosine.values for found in curves])
    lowest, highest = np.nanmin(cosines, initial=-0.1), np.nanmax(cosines, initial=0.1)
    strong, faint = (
        np.nanmax(np.abs(np.concatenate(logs)), initial=np.log(2))
        for logs in zip(*((found.log_ratio.smoothed, found.log_ratio.values) for found in curves), strict=True)
    )
    reach = 1.1 * np.exp(min(faint, strong + np.log(4)))
    for cosine, ratio in rows:
        cosine.set_ylim(max(-1.03, lowest - 0.05), min(1.03, highest + 0.05))
        cosine.axhspan(-1.03, 0, color=CONFLICT, zorder=0)
        ratio.set_ylim(1 / reach, reach)
        use_log_scale(ratio)
