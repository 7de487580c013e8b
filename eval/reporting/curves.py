"""Curves over training in small multiples: a row of panels a group of methods, so that every line can be followed.

Lines are moving averages: of the mean over seeds with a band of one standard deviation, or of a single run over
its faint steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from eval.reporting.plots import PAPER, WIDTH, save
from eval.reporting.seeds import RunGroup
from eval.results.methods import BASELINE, EXPERT, FRONT, METHOD, is_front_family, known_methods
from eval.results.runs import RunName, weights_of

CURVES = PAPER | {"font.size": 9, "axes.titlesize": 9.5}
MOST_LINES = 6  # in one panel
PANEL_HEIGHT, LEGEND_WIDTH = 2.2, 1.45  # inches


@dataclass(frozen=True)
class Curve:
    """One line of a panel; all [steps] float64, NaN where there is nothing. `spread` is None for a single run."""

    group: RunGroup
    steps: np.ndarray
    values: np.ndarray
    smoothed: np.ndarray
    spread: np.ndarray | None = None


# ---- figures -----------------------------------------------------------------------------------------------


def smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over a tenth of the run; windows shrink at the ends; NaN is passed over."""
    half = max(1, len(values) // 20)
    return np.array(
        [
            np.nanmean(window) if np.isfinite(window := values[max(0, i - half) : i + half + 1]).any() else np.nan
            for i in range(len(values))
        ]
    )


def tag_curve(group: RunGroup, tag: str) -> Curve | None:
    """A logged scalar: its mean over the steps that every seed logged, and the standard deviation over seeds."""
    if tag not in group.metrics:
        return None
    steps, values = np.array(group.metrics[tag], dtype=float).T
    return make_curve(group, steps, values, [dict(run.metrics[tag]) for run in group.runs])


def make_curve(group: RunGroup, steps: np.ndarray, values: np.ndarray, seeds: list[dict[float, float]]) -> Curve:
    """A curve [steps] with the deviation of `seeds` ({step: value}) where there are several."""
    if len(seeds) < 2:
        return Curve(group, steps, values, smooth(values))
    spread = np.std([[seed.get(step, np.nan) for step in steps] for seed in seeds], axis=0, ddof=1)
    return Curve(group, steps, values, smooth(values), smooth(spread))


def method_rows(groups: Sequence[RunGroup]) -> list[list[RunGroup]]:
    """Groups of one condition, split into rows: baselines, methods without a preference, each front, the rest."""

    fronts = [method.run for method in known_methods() if method.place == FRONT]

    def place(name: RunName) -> int:
        if name.row.place in (EXPERT, BASELINE):
            return 0
        if name.row.place == METHOD:
            return 1
        return 2 + (fronts.index(name.row.run) if name.row.place == FRONT else len(fronts))

    rows: dict[int, list[RunGroup]] = {}
    for group in groups:
        rows.setdefault(place(group.name), []).append(group)
    return [
        rows[index][start : start + MOST_LINES]
        for index in sorted(rows)
        for start in range(0, len(rows[index]), MOST_LINES)
    ]


def curve_colors(groups: Sequence[RunGroup]) -> dict[str, tuple[float, ...]]:
    """A color a base name: shades of the family's, of fronts from dark to light by weight; conditions share one."""
    families: dict[str, dict[str, RunName]] = {}
    for group in groups:
        families.setdefault(group.name.family, {}).setdefault(group.name.base, group.name)
    shades = {}
    for family, names in families.items():
        darkest = -0.45 if is_front_family(family) else 0.0  # -1: black, 0: the family's color, 1: white
        bases = sorted(names, key=lambda base: weights_of(names[base]))
        lights = np.linspace(darkest if len(bases) > 1 else 0.0, 0.6, len(bases))
        color = np.array(to_rgb(names[bases[0]].row.color))
        for base, light in zip(bases, lights, strict=True):
            shades[base] = tuple(color * (1 + min(light, 0)) + (1 - color) * max(light, 0))
    return {group.name.text: shades[group.name.base] for group in groups}


# ---- drawing -----------------------------------------------------------------------------------------------


def draw_curve(
    axes: Axes,
    curve: Curve,
    color: tuple[float, ...],
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> None:
    """A strong line over the faint one that it smooths, or in the band of the seeds; `transform` goes to y."""
    if curve.spread is None:
        axes.plot(curve.steps, transform(curve.values), color=color, alpha=0.2, linewidth=0.9)
    else:
        band = transform(curve.smoothed - curve.spread), transform(curve.smoothed + curve.spread)
        axes.fill_between(curve.steps, *band, color=color, alpha=0.18, linewidth=0)
    axes.plot(curve.steps, transform(curve.smoothed), color=color, linewidth=1.6)


def row_legend(axes: Axes, groups: Sequence[RunGroup], colors: dict[str, tuple[float, ...]]) -> None:
    """The row's methods, in an empty panel at its end."""
    axes.axis("off")
    handles = [Line2D([], [], color=colors[group.name.text], label=group.name.method) for group in groups]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(-0.12, 0.5), frameon=False, handlelength=1.5)


def mark_steps(axes: Axes) -> None:
    """x counts training steps: no fractions."""
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def use_log_scale(axes: Axes) -> None:
    """Logarithmic y with ticks in plain numbers, three a decade over a few; linear where nothing drawn is positive."""
    if not np.isfinite(axes.dataLim.minposy):
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 10000 * low else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def panel_grid(rows: int, columns: int, **options) -> tuple[plt.Figure, np.ndarray]:
    """Panels [rows, columns + 1]; the last column is for legends."""
    width = max(WIDTH, 2.4 * columns + LEGEND_WIDTH)
    panel = (width - LEGEND_WIDTH) / columns
    return plt.subplots(
        rows,
        columns + 1,
        figsize=(width, PANEL_HEIGHT * rows),
        width_ratios=[*[panel] * columns, LEGEND_WIDTH],
        layout="constrained",
        squeeze=False,
        **options,
    )


# ---- training curves ---------------------------------------------------------------------------------------


def curve_tags(groups: Sequence[RunGroup]) -> list[str]:
    """The scalars of a row's panels, in their order: scores by objective, divergence, length."""
    tags = list(dict.fromkeys(tag for group in groups for tag in group.metrics))
    rewards = [tag for tag in tags if tag.startswith("reward/")]
    return [*rewards, *(tag for tag in ("kl", "response_length") if tag in tags)]


def tag_title(tag: str) -> str:
    """'reward/a' -> 'a'; 'response_length' -> 'response length'."""
    return tag.rpartition("/")[2].replace("kl", "KL").replace("_", " ")


def plot_training_curves(groups: Sequence[RunGroup], condition: str, path: Path) -> bool:
    """training_curves.png, of the groups of one condition. False, and no file, without metrics."""
    colors = curve_colors([group for group in groups if group.metrics])
    members = [group for group in groups if group.name.condition == condition]
    tags = curve_tags(members)
    if not tags:
        return False
    rows = method_rows([group for group in members if any(tag in group.metrics for tag in tags)])
    with plt.rc_context(CURVES):
        figure, panels = panel_grid(len(rows), len(tags))
        for row, groups_of_row in zip(panels, rows, strict=True):
            for axes, tag in zip(row, tags, strict=False):
                for group in groups_of_row:
                    if curve := tag_curve(group, tag):
                        draw_curve(axes, curve, colors[group.name.text])
                mark_steps(axes)
            row_legend(row[-1], groups_of_row, colors)
        share_ranges(panels[:, :-1])
        for axes, tag in zip(panels[0], tags, strict=False):
            axes.set_title(tag_title(tag), loc="left")
        hide_inner_steps(panels[:, :-1])
        save(figure, path)
    return True


def share_ranges(panels: np.ndarray) -> None:
    """The same y range down each column, so that rows can be compared."""
    for column in panels.T:
        ranges = np.array([axes.get_ylim() for axes in column if axes.has_data()])
        for axes in column:
            axes.set_ylim(ranges[:, 0].min(), ranges[:, 1].max())


def hide_inner_steps(panels: np.ndarray) -> None:
    """The word 'step' below the last row only."""
    for axes in panels[:-1].flat:
        axes.set_xlabel("")
