"""Why score models with a gate gave their scores: what every attribute contributed, on average over the responses."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from eval.reporting.blocks import MARKDOWN, MOST_ROWS, Block, Figures, Picture, Report, Section, Text
from eval.reporting.curves import curve_colors
from eval.reporting.plots import NARROW_WIDTH, PAPER, save
from eval.reporting.sections.samples import choose_runs
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import MISSING, Cell, Column, Heading, Table, decimals_of, describe_spread, format_number
from eval.results.explanations import one_line
from eval.results.runs import objective_names

PLACE = 75
MOST_ATTRIBUTES = 10  # of a picture
LABEL_WIDTH = 40  # characters of an attribute's name in a picture
BAR = 0.09  # inches
EXPLANATION = (
    "A score model with a gate judges by several attributes and weighs them by what the prompt is. A contribution is"
    " what an attribute adds to the objective's value or takes from it, here on average over the responses; together"
    " they are the value, but for the mean that a reward is centered by."
)
Figure = tuple[float, float]  # mean, and its half-width or standard deviation


# ---- figures -----------------------------------------------------------------------------------------------


def group_figures(group: RunGroup, objective: str) -> dict[str, Figure]:
    """{attribute: (mean, spread)}, of the attributes that every seed has; {} where one has no explanations.

    The spread is the half-width of the interval over prompts or, of several seeds, their standard deviation.
    """
    seeds = [(run.evaluation.get("explanations") or {}).get(objective, {}) for run in group.runs]
    if len(seeds) == 1:
        return {name: (entry["mean"], entry["ci95"]) for name, entry in seeds[0].items()}
    means = {name: [seed[name]["mean"] for seed in seeds] for name in seeds[0] if all(name in seed for seed in seeds)}
    return {name: (statistics.fmean(values), statistics.stdev(values)) for name, values in means.items()}


def by_size(figures: Sequence[dict[str, Figure]]) -> list[str]:
    """All attributes, those first whose mean is largest in some run, by absolute value."""
    names = dict.fromkeys(name for found in figures for name in found)
    return sorted(names, key=lambda name: -max(abs(found[name][0]) for found in figures if name in found))


def explanation_table(figures: dict[str, dict[str, Figure]], groups: Sequence[RunGroup]) -> Table:
    """A row an attribute, a column a policy; `figures` by the name of the group."""
    columns = [Column((group.name.text,), "mean contribution", group.name.method, ranked=False) for group in groups]
    decimals = decimals_of([mean / 10 for found in figures.values() for mean, _ in found.values()])
    rows = []
    for attribute in by_size(list(figures.values())):
        found = [figures[group.name.text].get(attribute) for group in groups]
        cells = [Cell(*(format_number(x, decimals) for x in pair)) if pair else Cell(MISSING) for pair in found]
        rows.append((Heading(one_line(attribute), attribute), cells))
    return Table(columns, rows, spread=describe_spread(groups))


# ---- picture -----------------------------------------------------------------------------------------------


def plot_explanations(
    figures: dict[str, dict[str, dict[str, Figure]]], groups: Sequence[RunGroup], colors: dict[str, Any], path: Path
) -> None:
    """A panel an objective, in it an attribute after the other, a bar a run.

    Args:
        figures: {objective: {name of the group: its figures}}.
    """
    counts = [min(MOST_ATTRIBUTES, len(by_size(list(found.values())))) for found in figures.values()]
    heights = [count * (len(groups) + 1.5) * BAR + 0.8 for count in counts]
    with plt.rc_context(PAPER):
        figure, panels = plt.subplots(
            len(figures),
            1,
            figsize=(NARROW_WIDTH, sum(heights) + 0.3),
            height_ratios=heights,
            layout="constrained",
            squeeze=False,
        )
        for axes, (objective, found) in zip(panels[:, 0], figures.items(), strict=True):
            draw_bars(axes, found, groups, colors)
            axes.set_title(objective, loc="left")
        handles = [Patch(color=colors[group.name.text], label=group.name.method) for group in groups]
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        save(figure, path)


def draw_bars(
    axes: Axes, figures: dict[str, dict[str, Figure]], groups: Sequence[RunGroup], colors: dict[str, Any]
) -> None:
    """The attributes from the top down, their bars in the order of the groups."""
    names = by_size(list(figures.values()))[:MOST_ATTRIBUTES]
    height = 1 / (len(groups) + 1.5)
    for place, group in enumerate(groups):
        found = figures[group.name.text]
        rows = np.array([row for row, name in enumerate(names) if name in found])
        means, spreads = np.array([found[name] for name in names if name in found]).reshape(-1, 2).T
        offset = (place - (len(groups) - 1) / 2) * height
        axes.barh(rows + offset, means, 0.9 * height, color=colors[group.name.text], xerr=spreads,
                  error_kw={"ecolor": "#444444", "elinewidth": 0.8})  # fmt: skip
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="mean contribution to the objective's value")
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.tick_params(axis="y", length=0, labelcolor="#222222")
    axes.grid(False, axis="y")


def shorten(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= LABEL_WIDTH else f"{name[: LABEL_WIDTH - 1]}…"


# ---- the section -------------------------------------------------------------------------------------------


def make(report: Report) -> Section | None:
    blocks: list[Block] = []
    for condition, (title, _) in zip(report.conditions, report.tables, strict=True):
        groups = [group for group in report.groups if group.name.condition == condition]
        if found := explanation_blocks(groups, report.file_of("explanations", condition), report.folder):
            blocks += [*report.headed(title), *found]
    return Section("What the attributes contribute", "Attributes", blocks) if blocks else None


def explanation_blocks(groups: Sequence[RunGroup], file: str, folder: Path) -> list[Block]:
    """The picture and the tables of one condition; none where no run of it has explanations."""
    explained = [group for group in groups if any(found[group.name.text] for found in figures_of(groups).values())]
    if not explained:
        return []
    figures, (chosen, others) = figures_of(explained), choose_runs(explained)
    plot_explanations(figures, chosen, curve_colors(groups), folder / file)
    blocks: list[Block] = [
        Picture(file, "Mean contributions of the attributes", [caption(figures, chosen, others)]),
        Text([caption(figures, chosen, others)], only=MARKDOWN),
    ]
    for objective, found in figures.items():
        table = explanation_table(found, explained)
        size = f"{len(table.rows)} attributes of {len(explained)} policies"
        folded = f"{objective}: {size} as a table" if len(table.rows) > MOST_ROWS else ""
        blocks.append(Figures(table, "attribute", objective, folded, dense=True))
    return [*blocks, Text([table.spread], note=True)]


def figures_of(groups: Sequence[RunGroup]) -> dict[str, dict[str, dict[str, Figure]]]:
    """{objective: {name of a group: its `group_figures`}}, of objectives that some group has figures of."""
    names = objective_names((run.evaluation for group in groups for run in group.runs), "explanations")
    figures = {name: {group.name.text: group_figures(group, name) for group in groups} for name in names}
    return {name: found for name, found in figures.items() if any(found.values())}


def caption(
    figures: dict[str, dict[str, dict[str, Figure]]], chosen: Sequence[RunGroup], others: Sequence[RunGroup]
) -> str:
    """What the picture shows, and what it leaves out."""
    shown = []
    if any(len(by_size(list(found.values()))) > MOST_ATTRIBUTES for found in figures.values()):
        shown.append(f"the {MOST_ATTRIBUTES} attributes with the largest means, whatever their sign")
    if others:
        shown.append(f"{len(chosen)} of {len(chosen) + len(others)} policies")
    return f"{EXPLANATION} The picture shows {' and '.join(shown)}; the table has all." if shown else EXPLANATION
