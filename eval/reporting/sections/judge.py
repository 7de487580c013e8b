"""Pairwise judgements (figure 2 of the paper): win, tie and lose of the policies against a baseline.

They are read from eval/judge/*.json, which eval/judge.py writes. Several seeds of a policy count as one row: bars
are means over seeds.
"""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eval.reporting.blocks import MARKDOWN, PAGE, Block, Picture, Report, Section, Text, long_figures
from eval.reporting.plots import NARROW_WIDTH, PAPER, WIDTH, save
from eval.reporting.tables import Column, Table, fill_table
from eval.results.runs import RunName, parse_run_name, read_json, sort_names
from eval.results.shapes import NUMBER, TEXT, WHOLE, Each, Maybe, find_difference
from utils.process.errors import UserError

PLACE = 60
OUTCOMES = {"win": "#2E8B64", "tie": "#C9CDD2", "lose": "#C96A5B"}
REFERENCE = "sft"
SHARE = {"percent": NUMBER, "low": NUMBER, "high": NUMBER}
OBJECTIVE = {"relative_score": Maybe({"mean": NUMBER, "ci95": NUMBER}), **{name: Maybe(SHARE) for name in OUTCOMES}}
JUDGEMENT = {"policy": TEXT, "baseline": TEXT, "judge": TEXT, "prompts": WHOLE, "objectives": Each(OBJECTIVE)}


@dataclass(frozen=True)
class Judged:
    """One policy, all seeds; `figures` is {objective: {'relative', 'win', 'tie', 'lose'}} with 'sd' over seeds.

    `bounds` is {(objective, outcome): (low, high)} in percent: 95% Wilson bounds of one seed, or mean ± standard
    deviation over several.
    """

    name: RunName
    figures: dict[str, Any]
    bounds: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """All policies that one judge compared with one baseline."""

    judge: str
    baseline: RunName
    prompts: str
    objectives: list[str]
    policies: list[Judged]
    table: Table


def load_judgements(root: Path) -> list[dict[str, Any]]:
    """All files of eval/judge.py under `root`.

    Raises:
        UserError: a file that is none.
    """
    found = []
    for path in sorted((root / "eval" / "judge").glob("*.json")):
        content = read_json(path)
        if difference := find_difference(content, JUDGEMENT):
            raise UserError(f"{path}: not a judgement ({difference}); eval/judge.py writes them")
        found.append(content)
    return found


def find_judgement(entries: list[dict[str, Any]]) -> Judgement | None:
    """What the report shows: the judgements against the SFT model, or else against the first baseline there is.

    Of several judges it is the one with the most judgements.
    """
    baselines = [entry["baseline"] for entry in entries]
    baseline = REFERENCE if REFERENCE in baselines else next(iter(baselines), None)
    entries = [entry for entry in entries if entry["baseline"] == baseline]
    if not entries:
        return None
    judge = statistics.mode(entry["judge"] for entry in entries)
    by_group: dict[str, list[dict[str, Any]]] = {}
    for entry in (entry for entry in entries if entry["judge"] == judge):
        by_group.setdefault(parse_run_name(entry["policy"]).group, []).append(entry)
    members = [entry for seeds in by_group.values() for entry in seeds]
    objectives = list(dict.fromkeys(name for entry in members for name in entry["objectives"]))
    names = sorted(sort_names(by_group, objectives), key=lambda name: parse_run_name(name).condition)
    policies = [judge_group(name, by_group[name], objectives) for name in names]
    prompts = "–".join(str(count) for count in sorted({f(e["prompts"] for e in members) for f in (min, max)}))
    table = fill_table(judge_columns(objectives), [(policy, policy.figures) for policy in policies])
    return Judgement(judge, parse_run_name(baseline), prompts, objectives, policies, table)


def judge_columns(objectives: list[str]) -> list[Column]:
    """Score minus the baseline's, and the outcomes in percent, by objective."""
    columns = []
    for name in objectives:
        columns.append(Column((name, "relative"), name, "relative score", has_interval=True, prefix=f"{name}: "))
        columns += [
            Column((name, outcome), name, f"{outcome} %", 0, ranked=False, prefix=f"{name}: ") for outcome in OUTCOMES
        ]
    return columns


def judge_group(name: str, seeds: list[dict[str, Any]], objectives: list[str]) -> Judged:
    """Means over the seeds that were judged on an objective."""
    figures: dict[str, Any] = {"sd": {}}
    bounds = {}
    for objective in objectives:
        found = [entry["objectives"][objective] for entry in seeds if objective in entry["objectives"]]
        # None where no answer of the judge was usable.
        found = [entry for entry in found if all(entry.get(key) for key in OBJECTIVE)]
        if not found:
            continue
        relative = [entry["relative_score"] for entry in found]
        several = len(found) > 1
        means = {"mean": statistics.fmean(score["mean"] for score in relative)} if several else relative[0]
        figures[objective] = {"relative": means}
        if several:
            figures["sd"][objective] = {"relative": statistics.stdev(score["mean"] for score in relative)}
        for outcome in OUTCOMES:
            percents = [entry[outcome]["percent"] for entry in found]
            mean = statistics.fmean(percents)
            figures[objective][outcome] = mean
            spread = statistics.stdev(percents) if several else 0.0
            single = found[0][outcome]["low"], found[0][outcome]["high"]
            bounds[objective, outcome] = (mean - spread, mean + spread) if several else single
    return Judged(parse_run_name(name), figures, bounds)


# ---- picture -----------------------------------------------------------------------------------------------


def plot_judgement(judgement: Judgement, path: Path) -> None:
    """judge.png: a panel an objective, a bar a policy."""
    count = len(judgement.policies)
    with plt.rc_context(PAPER | {"axes.grid": False}):
        figure, panels = plt.subplots(
            1,
            len(judgement.objectives),
            figsize=(WIDTH if len(judgement.objectives) > 1 else NARROW_WIDTH, 1.3 + 0.3 * count),
            layout="constrained",
            squeeze=False,
            sharey=True,
        )
        for axes, objective in zip(panels[0], judgement.objectives, strict=True):
            for row, policy in enumerate(judgement.policies):
                draw_outcomes(axes, policy, objective, row)
            axes.set(
                xlim=(0, 100), ylim=(count - 0.4, -0.6), xlabel=f"% of comparisons with {judgement.baseline.method}"
            )
            axes.set_title(objective)
            axes.set_yticks(range(count), [policy.name.label for policy in judgement.policies])
            axes.tick_params(axis="y", length=0, labelcolor="#222222")
            axes.spines["left"].set_visible(False)
        handles = [Line2D([], [], color=color, linewidth=7, label=name) for name, color in OUTCOMES.items()]
        figure.legend(handles=handles, loc="outside upper right", ncol=3, frameon=False)
        save(figure, path)


def draw_outcomes(axes: Axes, policy: Judged, objective: str, row: int) -> None:
    """One stacked bar; whiskers where wins end and where losses begin."""
    found, left = policy.figures.get(objective), 0.0
    if not found:
        return
    for outcome, color in OUTCOMES.items():
        width = found[outcome]
        axes.barh(row, width, left=left, color=color, height=0.72, edgecolor="white", linewidth=0.6)
        if width >= 9:
            ink = "#333333" if outcome == "tie" else "white"
            axes.text(left + width / 2, row, f"{width:.0f}", ha="center", va="center", color=ink, fontsize=9)
        left += width
    ends = {"win": np.array(policy.bounds[objective, "win"]), "lose": 100 - np.array(policy.bounds[objective, "lose"])}
    for outcome, offset in (("win", -0.24), ("lose", 0.24)):
        if found[outcome] > 0:
            axes.plot(ends[outcome], [row + offset] * 2, color="#222222", linewidth=1.0, solid_capstyle="butt")


# ---- the section -------------------------------------------------------------------------------------------


def make(report: Report) -> Section | None:
    judgement = find_judgement(report.judgements)
    if judgement is None:
        return None
    plot_judgement(judgement, report.folder / "judge.png")
    baseline = judgement.baseline.method
    deviations = "standard deviations over seeds, or " if report.several_seeds else ""
    deviation = "its standard deviation over seeds, or " if report.several_seeds else ""
    caption = (
        f"Pairwise comparison of each policy's response with that of {baseline} on {judgement.prompts} prompts; the"
        f" judge: {judgement.judge}. Thin lines are {deviations}95% intervals of the share of wins (upper) and of"
        " losses (lower)."
    )
    note = (
        f"Relative score: the policy's score minus that of {baseline}, with {deviation}the half-width of the 95%"
        " interval over prompts."
    )
    blocks: list[Block] = [
        Picture("judge.png", "Win, tie and lose by policy and objective", [caption]),
        Text([f"{judgement.prompts} prompts; the judge: {judgement.judge}."], only=MARKDOWN),
        long_figures(judgement.table),
        Text([note], note=True, only=PAGE),
    ]
    return Section(f"Judged against {baseline}", "Judge", blocks)
