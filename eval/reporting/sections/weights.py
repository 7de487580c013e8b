"""How the methods weigh the objectives during training: shares of the coefficients, and Safe RLHF's multiplier."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from eval.reporting.blocks import Picture, Report, Section
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
    tag_curve,
)
from eval.reporting.plots import save
from eval.reporting.seeds import RunGroup
from eval.results.runs import Run, condition_title, find_conditions

PLACE = 90
COEFFICIENT, MULTIPLIER = "coefficient/", "lagrangian/multiplier/"
BALANCE = "#888888"


def coefficient_names(run: Run) -> list[str]:
    """The objectives whose coefficients a run logged."""
    return [tag.removeprefix(COEFFICIENT) for tag in run.metrics if tag.startswith(COEFFICIENT)]


def coefficient_share(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, share of `name` among all coefficients), both [steps] float64.

    The share is NaN where the coefficients sum to 0, one is negative or one is missing.
    """
    series = [dict(run.metrics[COEFFICIENT + other]) for other in coefficient_names(run)]
    own = dict(run.metrics[COEFFICIENT + name])
    steps = sorted({step for values in series for step in values})
    table = np.array([[values.get(step, np.nan) for step in steps] for values in series])
    total = np.where((table >= 0).all(axis=0), table.sum(axis=0), np.nan)
    share = np.array([own.get(step, np.nan) for step in steps])
    return np.array(steps, dtype=float), np.divide(share, total, out=np.full(len(steps), np.nan), where=total > 0)


def share_curve(group: RunGroup, name: str) -> Curve | None:
    """The mean over seeds of the seeds' shares; None for a run of one objective or without coefficients."""
    if len(coefficient_names(group)) < 2 or name not in coefficient_names(group):
        return None
    shares = [coefficient_share(run, name) for run in group.runs]
    seeds = [dict(zip(*share, strict=True)) for share in shares]
    steps = np.array([step for step in shares[0][0] if all(step in seed for seed in seeds)])
    values = np.mean([[seed[step] for step in steps] for seed in seeds], axis=0)
    return make_curve(group, steps, values, seeds)


def shown_objectives(groups: Sequence[RunGroup]) -> list[str]:
    """The objectives with a panel each; of two the first, whose share says all."""
    names = list(dict.fromkeys(name for group in groups for name in coefficient_names(group)))
    return names[:1] if len(names) == 2 else names


def find_multipliers(groups: Sequence[RunGroup]) -> list[str]:
    """Tags of the Lagrange multipliers."""
    return list(dict.fromkeys(tag for group in groups for tag in group.metrics if tag.startswith(MULTIPLIER)))


# ---- picture -----------------------------------------------------------------------------------------------


def plot_weights(groups: Sequence[RunGroup], path: Path) -> bool:
    """weights.png: a row a group of methods and one a multiplier, a column a condition and objective.

    False, and no file, where no run weighs two objectives.
    """
    members = [group for group in groups if len(coefficient_names(group)) > 1]
    columns = list(product(find_conditions(members), shown_objectives(members)))
    if not columns:
        return False
    colors = curve_colors([group for group in groups if group.metrics])
    blocks = method_rows(list({group.name.base: group for group in reversed(members)}.values())[::-1])
    tags = find_multipliers(members)
    with plt.rc_context(CURVES):
        figure, panels = panel_grid(len(blocks) + len(tags), len(columns))
        for row, block in zip(panels, blocks, strict=False):
            for axes, (condition, name) in zip(row, columns, strict=False):
                draw_shares(axes, same_methods(members, block, condition), name, colors)
            row_legend(row[-1], block, colors)
        for row, tag in zip(panels[len(blocks) :], tags, strict=True):
            logged = [group for group in members if tag in group.metrics]
            for axes, (condition, _) in zip(row, columns, strict=False):
                draw_multiplier(axes, [group for group in logged if group.name.condition == condition], tag, colors)
            row_legend(row[-1], list({group.name.base: group for group in logged}.values()), colors)
        for axes, (condition, name) in zip(panels[0], columns, strict=False):
            share, several = f"share of {name}", len({other for other, _ in columns}) > 1
            axes.set_title(f"{share} ({condition_title(condition)})" if several else share, loc="left")
        save(figure, path)
    return True


def same_methods(groups: Sequence[RunGroup], block: list[RunGroup], condition: str) -> list[RunGroup]:
    """The groups of a condition whose methods are those of `block`."""
    bases = {group.name.base for group in block}
    return [group for group in groups if group.name.base in bases and group.name.condition == condition]


def draw_shares(axes: Axes, groups: list[RunGroup], name: str, colors: dict[str, tuple[float, ...]]) -> None:
    """Shares of one objective; an empty place where no group has any."""
    curves = [curve for group in groups if (curve := share_curve(group, name))]
    if not curves:
        axes.axis("off")
        return
    axes.axhline(1 / len(coefficient_names(curves[0].group)), color=BALANCE, linewidth=1.0, zorder=1.5)
    for curve in curves:
        draw_curve(axes, curve, colors[curve.group.name.text])
    axes.set_ylim(-0.03, 1.03)
    mark_steps(axes)


def draw_multiplier(axes: Axes, groups: list[RunGroup], tag: str, colors: dict[str, tuple[float, ...]]) -> None:
    if not groups:
        axes.axis("off")
        return
    for group in groups:
        draw_curve(axes, tag_curve(group, tag), colors[group.name.text])
    axes.set_ylim(bottom=0)
    axes.set_title(f"multiplier of the cost: {tag.removeprefix(MULTIPLIER)}", loc="left")
    mark_steps(axes)


# ---- the section -------------------------------------------------------------------------------------------


def make(report: Report) -> Section | None:
    if not plot_weights(report.numbers.groups, report.folder / "weights.png"):
        return None
    caption = (
        "The share of one objective in the coefficients that multiply the objectives' losses or advantages, over"
        " training; at the gray line all count alike. Methods that look at gradients weigh down the longer one; fixed"
        " weights are flat lines."
    )
    picture = Picture("weights.png", "Shares of the coefficients over training", [caption])
    return Section("How the methods weigh the objectives", "Weights", [picture])
