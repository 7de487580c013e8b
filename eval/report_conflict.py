"""How much the objectives' gradients were in conflict during training, in figures and as a picture.

Everything comes from the `gradient/*` and `coefficient/*` scalars of metrics.jsonl. Runs without them (a single
objective, or fixed weights and no look at the gradients) have no such figures and are left out.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from eval.report_plots import CURVES, add_run_legend, curve_colors, draw_curve, mark_steps, save, smooth, use_log_scale
from eval.report_tables import Column, Table, fill_table
from eval.runs import Run, objective_names

MOST_PAIRS = 3  # rows of the picture and column groups of the table
BALANCE, CONFLICT = "#888888", "#FBF0EE"


@dataclass(frozen=True)
class Pair:
    """Two objectives; norm ratio and share are those of the first against the second."""

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
        share: c_first / (c_first + c_second) of the coefficients that the update gave the two gradients; NaN where
            both are 0 or one is negative.
    """

    steps: np.ndarray
    cosine: np.ndarray
    norm_ratio: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class Conflict:
    """What the report shows: the pairs, how many there are in all, the runs shown and left out, the table."""

    pairs: list[Pair]
    pair_count: int
    runs: list[Run]
    left_out: list[Run]
    table: Table

    @property
    def caption(self) -> str:
        """What the picture shows, for readers who never saw one."""
        first = self.pairs[0].first if len(self.pairs) == 1 else "the first objective of the pair"
        second = self.pairs[0].second if len(self.pairs) == 1 else "the second"
        sentences = [
            "Left: the cosine between the gradients of two objectives. Below 0 (shaded), an update that helps one by"
            " following its gradient alone hurts the other; at −1 they are exact opposites.",
            f"Middle: how many times longer the gradient of {first} is than that of {second}. Far from 1, a plain sum"
            " of the two follows the longer one.",
            f"Right: what the method made of it, the share of {first} in the coefficients that multiply the two"
            " gradients in the update; at 0.5 it adds them as they are.",
            "Strong lines are moving averages, faint ones the steps themselves.",
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
    parts = [read_values(run, f"coefficient/{name}", steps) for name in (pair.first, pair.second)]
    parts = [np.where(part < 0, np.nan, part) for part in parts]
    return Trace(
        steps=np.array(steps, dtype=float),
        cosine=np.where(np.isnan(norms).any(axis=0), np.nan, cosine),
        norm_ratio=divide(*norms),
        share=divide(parts[0], parts[0] + parts[1]),
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


def find_conflict(runs: list[Run]) -> Conflict | None:
    """What there is to show, or None where no run logged the gradients of two objectives."""
    pairs = find_pairs(runs)
    rows = [(run, figures) for run in runs if (figures := conflict_figures(run, pairs))]
    if not rows:
        return None
    shown = most_opposed(pairs, [figures for _, figures in rows])
    with_figures = [run for run, _ in rows]
    left_out = [run for run in runs if run.metrics and run not in with_figures]
    return Conflict(shown, len(pairs), with_figures, left_out, fill_table(conflict_columns(shown), rows))


# ---- picture -----------------------------------------------------------------------------------------------


def plot_conflict(conflict: Conflict, runs: list[Run], path: Path) -> None:
    """conflict.png: a row of cosine, norm ratio and share of the coefficients for each pair and condition.

    Args:
        runs: all runs of the report, so that a run has the color it has among the training curves.
    """
    colors = curve_colors([run for run in runs if run.metrics])
    conditions = list(dict.fromkeys(run.name.condition for run in conflict.runs))
    rows = [
        (pair, condition)
        for pair, condition in product(conflict.pairs, conditions)
        if any(run.name.condition == condition and trace_pair(run, pair) for run in conflict.runs)
    ]
    with plt.rc_context(CURVES):
        figure, panels = plt.subplots(len(rows), 3, figsize=(11, 3.0 * len(rows)), sharex="row", squeeze=False)
        for row, (pair, condition) in zip(panels, rows, strict=True):
            traces = {run.name.text: trace for run in conflict.runs if (trace := trace_pair(run, pair))}
            members = [run for run in conflict.runs if run.name.condition == condition and run.name.text in traces]
            for run in members:
                draw_trace(row, run, traces[run.name.text], colors, crowded=len(members) > 8)
            finish_row(row, pair, condition, list(traces.values()))
        add_run_legend(figure, conflict.runs, colors)
        save(figure, path)


def smooth_ratio(trace: Trace) -> np.ndarray:
    """Geometric moving average, [steps]: a ratio and its inverse are equally far from 1."""
    return np.exp(smooth(np.log(trace.norm_ratio)))


def draw_trace(row: np.ndarray, run: Run, trace: Trace, colors: dict[str, tuple[float, ...]], crowded: bool) -> None:
    """One run in the three panels of a row."""
    curves = (
        (trace.cosine, smooth(trace.cosine)),
        (trace.norm_ratio, smooth_ratio(trace)),
        (trace.share, smooth(trace.share)),
    )
    for axes, (values, smoothed) in zip(row, curves, strict=True):
        draw_curve(axes, run, trace.steps, values, smoothed, colors[run.name.text], crowded)


def finish_row(row: np.ndarray, pair: Pair, condition: str, traces: list[Trace]) -> None:
    """Words, ranges and lines of balance; ranges are those of `traces`, the pair's runs under all conditions."""
    words = (
        ("cosine of the gradients", f"{pair.first}, {pair.second}", 0.0),
        ("ratio of their norms", pair.label, 1.0),
        ("share of the coefficients", f"of {pair.first}", 0.5),
    )
    for axes, (title, y_label, balance) in zip(row, words, strict=True):
        axes.set_title(f"{title} ({condition})" if condition else title, loc="left")
        axes.set_ylabel(textwrap.fill(y_label, 30))
        axes.axhline(balance, color=BALANCE, linewidth=1.0, zorder=1.5)
        mark_steps(axes)
    cosine, ratio, share = row
    cosines = np.concatenate([trace.cosine for trace in traces])
    lowest, highest = np.nanmin(cosines, initial=-0.1), np.nanmax(cosines, initial=0.1)
    cosine.set_ylim(max(-1.03, lowest - 0.05), min(1.03, highest + 0.05))
    cosine.axhspan(-1.03, 0, color=CONFLICT, zorder=0)
    show_ratios(ratio, traces)
    share.set_ylim(-0.03, 1.03)


def show_ratios(axes: Axes, traces: list[Trace]) -> None:
    """A logarithmic range, symmetric about 1, so that the longer gradient is seen at a glance.

    It goes four times as far as the strong lines at most: a single step with next to no gradient must not set it.
    """

    def reach_of(ratios: list[np.ndarray]) -> float:
        return np.exp(np.nanmax(np.abs(np.log(np.concatenate(ratios))), initial=np.log(2)))

    strong = reach_of([smooth_ratio(trace) for trace in traces])
    reach = 1.1 * min(reach_of([trace.norm_ratio for trace in traces]), 4 * strong)
    axes.set_ylim(1 / reach, reach)
    use_log_scale(axes)
