"""Which judge fails whom, and the figures of every task: what binary judges pass, beside model and gold scores."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from eval.reporting.blocks import Block, Heading, Picture, Report, Section, Text, long_figures
from eval.reporting.plots import PAPER, WIDTH, save
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import KIND_TITLES, Column, Table, count_range, describe_spread, fill_table, format_number
from eval.results.runs import condition_title, find_conditions

PLACE = 65
PERCENT, ALL = 100.0, "all"
JUDGES = "judges: responses that pass, %"
CAPTION = (
    "Which judge fails whom: the responses that each judge passes, in percent of those that it judges. A response fails"
    " together where any judge fails it."
)
TASK_NOTE = "{prompts} test prompts. The reward of this task is {rewards}."


@dataclass(frozen=True)
class Place:
    """Where figures of judges stand in an evaluation: of all prompts, or of a task."""

    path: tuple[str, ...]
    title: str

    def of(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """{judge: its entry}."""
        found: Any = evaluation
        for key in (*self.path, "judges"):
            found = found.get(key) or {}
        return found


def task_names(groups: Sequence[RunGroup]) -> list[str]:
    """Those of all runs, in the order in which they are first met."""
    return list(
        dict.fromkeys(name for group in groups for run in group.runs for name in run.evaluation.get("tasks") or {})
    )


def judge_names(groups: Sequence[RunGroup], place: Place) -> list[str]:
    """Those with figures there, that of all judges together at last; it alone says nothing."""
    found = dict.fromkeys(name for group in groups for run in group.runs for name in place.of(run.evaluation))
    return [name for name in found if name != ALL] + [ALL] * (ALL in found and len(found) > 2)


def over_seeds(entries: Sequence[Mapping[str, float] | None], factor: float = 1.0) -> tuple[Any, float | None]:
    """A figure of every seed as one: its entry, and its standard deviation, None of one seed; None where some lack
    it."""
    if not entries or any(entry is None for entry in entries):
        return None, None
    means = [factor * entry["mean"] for entry in entries]
    if len(entries) == 1:
        return {"mean": means[0], "ci95": factor * entries[0]["ci95"]}, None
    return {"mean": statistics.fmean(means)}, statistics.stdev(means)


def figures_of(group: RunGroup, place: Place, names: Sequence[str], task: str = "") -> dict[str, Any]:
    """Judges' figures of a group in percent and, of a task, its scores; deviations under 'sd', of the same shape."""
    wanted = {("judges", name): ([place.of(run.evaluation).get(name) for run in group.runs], PERCENT) for name in names}
    if task:
        entries = [(run.evaluation.get("tasks") or {}).get(task) or {} for run in group.runs]
        for part in ("objectives", "gold"):
            columns = dict.fromkeys(name for entry in entries for name in entry.get(part) or {})
            wanted |= {(part, name): ([(e.get(part) or {}).get(name) for e in entries], 1.0) for name in columns}
    found: dict[str, Any] = {"sd": {}}
    for (part, name), (entries, factor) in wanted.items():
        found.setdefault(part, {})[name], found["sd"].setdefault(part, {})[name] = over_seeds(entries, factor)
    return found


def table_of(groups: Sequence[RunGroup], place: Place, task: str = "") -> Table | None:
    """A row a group; None where no judge says anything there, and, of a task, nothing has figures."""
    names = judge_names(groups, place)
    rows = [(group, figures_of(group, place, names, task)) for group in groups]
    columns = [
        Column((part, name), title, name, has_interval=True, prefix=prefix)
        for part, title, prefix in (
            ("objectives", KIND_TITLES["model"], ""), ("gold", KIND_TITLES["gold"], "gold "),
        )
        for name in dict.fromkeys(name for _, figures in rows for name in figures.get(part, {}))
    ]  # fmt: skip
    columns += [
        Column(("judges", name), JUDGES, f"{name} %", decimals=1, has_interval=True, prefix="passes ") for name in names
    ]
    rows = [(group, figures) for group, figures in rows if any(c.value(figures)[0] is not None for c in columns)]
    return fill_table(columns, rows) if rows and columns else None


# ---- picture -----------------------------------------------------------------------------------------------


def plot_verdicts(groups: Sequence[RunGroup], places: Sequence[Place], path: Path) -> bool:
    """A row a group, a column a judge, place after place. False, and no file, where no judge says anything."""
    columns = [(place, name) for place in places for name in judge_names(groups, place)]
    entries = [[figures_of(group, place, [name])["judges"][name] for place, name in columns] for group in groups]
    shares = np.array([[entry["mean"] if entry else np.nan for entry in row] for row in entries])
    if not columns or np.isnan(shares).all():
        return False
    with plt.rc_context(PAPER):
        size = (min(WIDTH, 2.6 + 1.1 * len(columns)), 1.3 + 0.32 * len(groups))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=PERCENT, aspect="auto", alpha=0.75)
        for row, column in np.ndindex(shares.shape):
            text = format_number(None if np.isnan(shares[row, column]) else shares[row, column], 0)
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="#222222")
        axes.set_yticks(range(len(groups)), [group.name.method for group in groups])
        axes.set_xticks(range(len(columns)), [f"{place.title}\n{name}" for place, name in columns])
        axes.set_title("responses that pass a judge, %", loc="left")
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor="#222222")
        axes.grid(False)
        for edge in [n for n, (one, other) in enumerate(zip(columns, columns[1:], strict=False)) if one[0] != other[0]]:
            axes.axvline(edge + 0.5, color="white", linewidth=3)
        save(figure, path)
    return True


# ---- the section -------------------------------------------------------------------------------------------


def make(report: Report) -> Section | None:
    tasks = task_names(report.groups)
    places = [Place(("tasks", name), name) for name in tasks] or [Place((), "all prompts")]
    blocks: list[Block] = []
    for condition in find_conditions(report.groups):
        groups = [group for group in report.groups if group.name.condition == condition]
        blocks += condition_blocks(report, groups, places, tasks, condition)
    return Section("Judges and tasks" if tasks else "Judges", "Judges", blocks) if blocks else None


def condition_blocks(
    report: Report, groups: Sequence[RunGroup], places: Sequence[Place], tasks: Sequence[str], condition: str
) -> list[Block]:
    """Picture and tables of one condition; none where nothing is judged, and there are no tasks."""
    blocks: list[Block] = []
    file = report.file_of("judges", condition)
    if plot_verdicts(groups, places, report.folder / file):
        blocks.append(Picture(file, "What judges pass", [CAPTION]))
    for place in places:
        table = table_of(groups, place, task=place.title if tasks else "")
        if table is None:
            continue
        if tasks:
            blocks += [
                Heading(f"Task {place.title}"),
                Text([TASK_NOTE.format(**described(groups, place.title))]),
            ]
        blocks.append(long_figures(table))
    if not blocks:
        return []
    return [*report.headed(condition_title(condition)), *blocks, Text([describe_spread(groups)], note=True)]


def described(groups: Sequence[RunGroup], task: str) -> dict[str, str]:
    """'prompts': how many; 'rewards': 'helpfulness', or '1 harmlessness + 0.2 helpfulness'."""
    tasks = (run.evaluation.get("tasks") or {} for group in groups for run in group.runs)
    found = [tasks_of_run[task] for tasks_of_run in tasks if task in tasks_of_run]
    rewards = found[0]["rewards"]
    worth = " + ".join(f"{weight:g} {name}" for name, weight in rewards.items())
    return {
        "prompts": count_range(e["prompts"] for e in found),
        "rewards": worth if len(rewards) > 1 else next(iter(rewards)),
    }
