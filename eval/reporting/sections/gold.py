"""Model score against gold score: is the reward model being exploited?

The SFT model is the anchor. The slope of its model scores over its gold scores, prompt by prompt, says what a gold
point is worth to the reward model. A policy whose model score rose by more than that, for the gold score it gained,
pleases the reward model without doing the task as much better.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from eval.reporting.blocks import MARKDOWN, Block, Break, Picture, Report, Section, Text, long_figures
from eval.reporting.plane import (
    LABEL_SIZE,
    Place,
    Plane,
    draw_groups,
    front_handles,
    label_groups,
    marker_boxes,
    short_label,
)
from eval.reporting.plots import GRID, NARROW_WIDTH, PAPER, WIDTH, save
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import Column, Table, fill_table
from eval.results.runs import Run, condition_title, find_conditions, find_fronts, objective_names

PLACE = 70
ANCHOR = "sft"
EXCESS = "#FBF0EE"
TABLE_NOTE = (
    "Against the SFT model: how much the model score and the gold score rose. Excess: the rise of the model score"
    " beyond what the gold score's rise is worth at the slope of the SFT model's own responses, with the half-width"
    " of its 95% interval over prompts, or with its standard deviation over seeds. r: correlation of model and gold"
    " score over the policy's prompts."
)


@dataclass(frozen=True)
class Anchor:
    """Where the SFT model stands in one objective, and the slope of model score over gold score there."""

    gold: float
    model: float
    slope: float


def paired_scores(run: Run, name: str) -> dict[str, tuple[float, float]]:
    """{prompt's source: (model score, gold score)} of one objective, where a row has both and the model's is judged."""
    return {
        row["source"]: (row["scores"][name], row["gold"][name])
        for row in run.evaluation["rows"]
        if row["scores"].get(name) is not None and name in (row.get("gold") or {})
    }


def find_anchor(groups: Sequence[RunGroup], name: str) -> Anchor | None:
    """The SFT model's; None without one, or where its gold scores are all alike."""
    for run in (run for group in groups if group.name.base == ANCHOR for run in group.runs):
        pairs = np.array(list(paired_scores(run, name).values()))
        if len(pairs) > 1 and np.ptp(pairs[:, 1]) > 0:
            model, gold = pairs.T
            slope = np.cov(gold, model)[0, 1] / gold.var(ddof=1)
            return Anchor(float(gold.mean()), float(model.mean()), float(slope))
    return None


def correlation(pairs: np.ndarray) -> float | None:
    """Pearson's r of the two columns [n, 2]; None where one of them does not vary."""
    if len(pairs) < 2 or (np.ptp(pairs, axis=0) == 0).any():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])


def shift_figures(run: Run, name: str, anchor: Anchor) -> dict[str, Any]:
    """One run's rise against the anchor in one objective; 'excess' is per prompt, so it has an interval."""
    pairs = np.array(list(paired_scores(run, name).values())).reshape(-1, 2)
    if not len(pairs):
        return {"model": None, "gold": None, "excess": None, "r": None}
    excess = pairs[:, 0] - anchor.model - anchor.slope * (pairs[:, 1] - anchor.gold)
    half_width = 1.96 * excess.std(ddof=1) / np.sqrt(len(excess)) if len(excess) > 1 else 0.0
    return {
        "model": float(pairs[:, 0].mean() - anchor.model),
        "gold": float(pairs[:, 1].mean() - anchor.gold),
        "excess": {"mean": float(excess.mean()), "ci95": float(half_width)},
        "r": correlation(pairs),
    }


def group_shift(group: RunGroup, name: str, anchor: Anchor) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, their standard deviations): means over seeds; without deviations for a single one."""
    seeds = [shift_figures(run, name, anchor) for run in group.runs]
    if len(seeds) == 1 or any(seed["excess"] is None for seed in seeds):
        return seeds[0], {}
    excess = [seed["excess"]["mean"] for seed in seeds]
    found = [seed["r"] for seed in seeds if seed["r"] is not None]
    figures = {key: statistics.fmean(seed[key] for seed in seeds) for key in ("model", "gold")}
    figures |= {"excess": {"mean": statistics.fmean(excess)}, "r": statistics.fmean(found) if found else None}
    return figures, {"excess": statistics.stdev(excess)}


def build_gold_table(groups: Sequence[RunGroup]) -> Table | None:
    """Rises, excess and correlation by objective; None without gold scores or an anchor."""
    anchors = {name: anchor for name in gold_objectives(groups) if (anchor := find_anchor(groups, name))}
    if not anchors:
        return None
    columns = []
    for name in anchors:
        columns += [
            Column((name, "model"), name, "model", ranked=False, prefix=f"{name}: "),
            Column((name, "gold"), name, "gold", ranked=False, prefix=f"{name}: "),
            Column((name, "excess"), name, "excess", ranked=False, has_interval=True, prefix=f"{name}: "),
            Column((name, "r"), name, "r", ranked=False, prefix=f"{name}: "),
        ]
    rows = []
    for group in groups:
        if not group.gold:
            continue
        shifts = {name: group_shift(group, name, anchor) for name, anchor in anchors.items()}
        figures = {name: found for name, (found, _) in shifts.items()}
        rows.append((group, {**figures, "sd": {name: spread for name, (_, spread) in shifts.items()}}))
    return fill_table(columns, rows)


def gold_objectives(groups: Sequence[RunGroup]) -> list[str]:
    """Objectives with model scores and gold scores."""
    gold = objective_names(group.gold or {} for group in groups)
    return [name for name in objective_names(group.evaluation for group in groups) if name in gold]


# ---- picture -----------------------------------------------------------------------------------------------


def score_plane(name: str, title: str) -> Plane:
    """Gold score to the right, model score up."""

    def locate(run: RunGroup) -> Place | None:
        model, gold = run.objectives.get(name), (run.gold or {}).get("objectives", {}).get(name)
        if model is None or gold is None:
            return None
        return gold["mean"], model["mean"], gold.get("ci95", 0.0), model.get("ci95", 0.0)

    return Plane(title, f"{name}  (gold score)  →", f"{name}  (model score)  →", locate)


def plot_exploitation(groups: Sequence[RunGroup], path: Path) -> bool:
    """exploitation.png: a row a condition, a panel an objective. False, and no file, without gold scores."""
    names = gold_objectives(groups)
    if not names:
        return False
    conditions = find_conditions(groups)
    size = (max(WIDTH, 5.8 * len(names)) if len(names) > 1 else NARROW_WIDTH, 4.9 * len(conditions))
    with plt.rc_context(PAPER):
        figure, panels = plt.subplots(
            len(conditions), len(names), figsize=size, layout="constrained", squeeze=False, sharex="col", sharey="col"
        )
        drawn = []
        for row, condition in zip(panels, conditions, strict=True):
            members = [group for group in groups if group.name.condition == condition or group.name.base == ANCHOR]
            for axes, name in zip(row, names, strict=True):
                title = f"{name} ({condition_title(condition)})" if len(conditions) > 1 else name
                plane = score_plane(name, title)
                draw_groups(axes, plane, members)
                axes.margins(0.12)
                axes.set(title=plane.title, xlabel=plane.x_label, ylabel=plane.y_label)
                drawn.append((axes, plane, members, find_anchor(groups, name)))
        if handles := front_handles(find_fronts(groups)):
            panels[0, 0].legend(handles=handles, loc="lower right", edgecolor=GRID, fontsize=LABEL_SIZE)
        figure.canvas.draw()
        figure.set_layout_engine("none")
        for axes, plane, members, anchor in drawn:
            lines = [draw_anchor(axes, anchor)] if anchor else []
            fronts = find_fronts(members)
            labels = [(group, short_label(group.name, fronts)) for group in members]
            label_groups(axes, plane, labels, marker_boxes(axes, plane, members), lines)
        save(figure, path)
    return True


def draw_anchor(axes: Axes, anchor: Anchor) -> np.ndarray:
    """The line through the SFT model on which model and gold score rise together. Returns it, [2, 2]."""
    x, limits = np.array(axes.get_xlim()), axes.get_ylim()
    y = anchor.model + anchor.slope * (x - anchor.gold)
    axes.plot(x, y, color="#888888", linewidth=1.1, linestyle="--", zorder=1.5)
    axes.fill_between(x, y, limits[1], where=y < limits[1], color=EXCESS, linewidth=0, zorder=0, interpolate=True)
    axes.text(
        0.02,
        0.98,
        "above the line: more model score\nthan the gold score explains",
        transform=axes.transAxes,
        va="top",
        fontsize=LABEL_SIZE,
        color="#9A2B1D",
    )
    axes.set(xlim=x, ylim=limits)
    return np.stack([x, y], axis=1)


# ---- the section -------------------------------------------------------------------------------------------


def make(report: Report) -> Section | None:
    if not plot_exploitation(report.numbers.groups, report.folder / "exploitation.png"):
        return None
    caption = (
        "Is the reward model being exploited? The gold score grades the text by fixed rules that no policy ever saw."
        " The dashed line passes through the SFT model with the slope that ties the two scores in its own responses. A"
        " policy in the shaded part above it pleases the model by more than the task explains: exploitation. On the"
        " line, both scores tell the same story."
    )
    above = [
        "Above the dashed line, which passes through the SFT model with the slope of its own responses, the model score"
        " rose by",
        Break(),
        "more than the gold score explains.",
    ]
    title = "Model score against gold score"
    blocks: list[Block] = [Picture("exploitation.png", title, [caption]), Text(above, only=MARKDOWN)]
    if table := build_gold_table(report.groups):
        blocks += [long_figures(table), Text([TABLE_NOTE], note=True)]
    return Section(title, "Gold scores", blocks)
