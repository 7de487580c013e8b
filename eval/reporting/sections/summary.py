"""What the numbers say, in a few lines a condition: extremes, leaders and ties, where the methods stand.

Every word is decided by figures and their 95% intervals; what an interval does not tell apart is called a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.reporting.blocks import Block, Break, Cards, Mark, Points, Report, Section, Text, Words
from eval.reporting.comparisons import (
    METRIC_TITLES,
    Metric,
    difference_interval,
    difference_mark,
    mean_metrics,
    volume_metrics,
)
from eval.reporting.results import Numbers
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import KIND_TITLES, decimals_of, format_number
from eval.results.methods import family_title, is_front_family, preference
from eval.results.runs import (
    Front,
    Run,
    RunName,
    condition_title,
    find_conditions,
    find_fronts,
    find_stand_ins,
    objective_names,
    parse_run_name,
)

PLACE = 10
STANDINGS = {"ahead": "ahead of", "level": "level with", "behind": "behind"}
OPPOSITES = {"ahead": "behind", "level": "level", "behind": "ahead"}


@dataclass(frozen=True)
class Leader:
    """The highest row of a measure, and the rows that its 95% interval does not tell from it.

    `standings` say where methods that were compared with the others stand: {method: {'ahead', 'level', 'behind'}}.
    """

    measure: str
    leader: str
    ties: list[str]
    standings: dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Summary:
    condition: str
    sentences: list[str]
    leaders: list[Leader]


def summarize_report(numbers: Numbers) -> list[Summary]:
    """One summary a condition, the default one first; of single rows, and of fronts as wholes."""
    return [summarize_condition(numbers, condition) for condition in find_conditions(numbers.groups)]


def summarize_condition(numbers: Numbers, condition: str) -> Summary:
    own = [group for group in numbers.groups if group.name.condition == condition]
    stand_ins = find_stand_ins(numbers.groups, condition)
    single = [group for group in own if is_whole(group.name)]
    rows = [group for group in numbers.groups if group in single or group in stand_ins]
    fronts = find_fronts(own)
    sentences = [
        *scale_sentences(own),
        *extreme_sentences(rows),
        *order_sentences(fronts),
        *front_sentences(numbers, condition),
    ]
    return Summary(condition_title(condition), sentences, find_leaders(numbers, rows, condition))


# ---- sentences ---------------------------------------------------------------------------------------------


def score_entries(group: Run) -> dict[str, dict[str, Any]]:
    """{kind of score: {objective: entry with a 'mean'}}."""
    gold = {"gold": group.gold["objectives"]} if group.gold else {}
    return {"model": group.objectives, **gold}


def scale_sentences(groups: Sequence[Run]) -> list[str]:
    """What a condition of scaled scores, or of another β, is."""
    scales = {item for group in groups for item in group.scales.items()}
    betas = {item for group in groups for item in group.betas.items()}
    shown = lambda items, word: " and ".join(f"{name} {word} {value:g}" for name, value in sorted(items))
    sentences = []
    if scales:
        found = shown(scales, "by")
        sentences.append(f"Training multiplied the scores of {found}; all figures here are in original units.")
    if betas:
        sentences.append(f"Training on pairs had β of {shown(betas, '=')}.")
    return sentences


def extreme_sentences(rows: Sequence[RunGroup]) -> list[str]:
    """Who is highest and lowest in every objective, on model and gold scores."""
    sentences = []
    for name in objective_names(group.evaluation for group in rows):
        parts: dict[str, list[str]] = {}
        for kind in KIND_TITLES:
            found = [(group, score_entries(group).get(kind, {}).get(name)) for group in rows]
            means = [(entry["mean"], group.name.method) for group, entry in found if entry]
            if len(means) > 1:
                (low, lowest), (high, highest) = min(means), max(means)
                who = f"{highest} is the highest row and {lowest} the lowest"
                parts.setdefault(who, []).append(f"{kind} {format_number(high, 2)} and {format_number(low, 2)}")
        sentences += [f"{name.capitalize()}: {who} ({'; '.join(scores)})." for who, scores in parts.items()]
    return sentences


def order_sentences(fronts: list[Front]) -> list[str]:
    """Whether fronts are ordered by preference: the more weight on an objective, the more of it."""
    verdicts: dict[str, list[str]] = {}
    for front in fronts:
        known = [kind for kind in KIND_TITLES if has_all(front, kind)]
        ordered = [kind for kind in known if is_ordered(front, kind)]
        on = " and ".join(KIND_TITLES[kind] for kind in ordered)
        verdict = f"on {on}" + ("" if ordered == known else " only") if ordered else "on no kind of score"
        verdicts.setdefault(verdict, []).append(family_title(front.family))
    found = "; ".join(f"{', '.join(names)} {verdict}" for verdict, names in verdicts.items())
    return [f"Fronts ordered by preference: {found}."] if found else []


def front_sentences(numbers: Numbers, condition: str) -> list[str]:
    """How the hypervolumes of fronts compare."""
    sentences = []
    for name in ("hypervolume", "gold_hypervolume"):
        for front, standing in find_standings(numbers, condition, name).items():
            if is_front_family(front):
                found = [f"{STANDINGS[place]} {', '.join(others)}" for place, others in standing.items() if others]
                sentences.append(f"Fronts by {METRIC_TITLES[name]}: {family_title(front)} is {'; '.join(found)}.")
    return sentences


def has_all(front: Front, kind: str) -> bool:
    """Whether all points of a front have scores of this kind, of the same objectives."""
    found = [list(score_entries(group).get(kind, {})) for _, group in front.points]
    return bool(found[0]) and all(names == found[0] for names in found)


def is_ordered(front: Front, kind: str) -> bool:
    """Of any two points, the one with more weight on an objective has more of it."""
    weights = np.array([preference(weight) for weight, _ in front.points])
    scores = np.array([[entry["mean"] for entry in score_entries(run)[kind].values()] for _, run in front.points])
    count = min(weights.shape[1], scores.shape[1])
    more_weight, more_score = (values[:, None, :count] - values[:, :count] > 0 for values in (weights, scores))
    return bool(more_score[more_weight].all())


# ---- leaders -----------------------------------------------------------------------------------------------


def find_metrics(numbers: Numbers) -> dict[str, Metric]:
    """The measures of the summary that there are figures for."""
    if "model" not in numbers.draws:
        return {}
    model, gold = numbers.draws["model"], numbers.draws.get("gold")
    metrics = mean_metrics(model, gold) | volume_metrics(model, gold)
    return {name: metrics[name] for name in METRIC_TITLES if name in metrics}


def find_leaders(numbers: Numbers, rows: Sequence[RunGroup], condition: str) -> list[Leader]:
    """One entry a measure."""
    leaders = []
    for name, metric in find_metrics(numbers).items():
        draws = numbers.draws["gold" if name.startswith("gold") else "model"]
        known = [group for group in rows if all(run.name.text in draws.means for run in group.runs)]
        values = {group.name.text: np.mean([metric.of([run])[0] for run in group.runs]) for group in known}
        if len(values) < 2:
            continue
        best = max(known, key=lambda group: values[group.name.text])
        ties = [group for group in known if group is not best and is_tie(metric, best, group)]
        ties.sort(key=lambda group: -values[group.name.text])
        decimals = decimals_of([values[best.name.text]]) if name.endswith("hypervolume") else 2
        leader, *shown = (
            f"{group.name.method} {format_number(values[group.name.text], decimals)}" for group in (best, *ties)
        )
        standings = {
            parse_run_name(method).method: standing
            for method, standing in find_standings(numbers, condition, name).items()
            if method in {group.name.base for group in known}
        }
        leaders.append(Leader(METRIC_TITLES[name], leader, shown, standings))
    return leaders


def is_tie(metric: Metric, best: RunGroup, other: RunGroup) -> bool:
    """Whether the 95% interval of their paired difference includes 0; True where nothing is common to them."""
    pairs = [(one, two) for one in best.runs for two in other.runs if one.name.seed == two.name.seed]
    found = [draws for one, two in pairs if not np.isnan((draws := metric.difference([one], [two]))[0])]
    return not found or difference_interval(np.array(found))["low"] <= 0


def find_standings(numbers: Numbers, condition: str, metric: str) -> dict[str, dict[str, list[str]]]:
    """{run or front that was compared: the methods that it is ahead of, level with and behind in one measure}."""
    found = [
        entry
        for entry in numbers.comparisons
        if (entry["condition"], entry["metric"]) == (condition_title(condition), metric)
        and is_whole(parse_run_name(entry["method"]))
    ]
    standings = {entry["method"]: {place: [] for place in STANDINGS} for entry in found}
    for entry in found:
        method, other, place = entry["method"], entry["other"], difference_mark(entry) or "level"
        standings[method][place].append(parse_run_name(other).method)
        if other in standings:
            standings[other][OPPOSITES[place]].append(parse_run_name(method).method)
    return standings


def is_whole(name: RunName) -> bool:
    """Whether a name is that of a method or of a front, not of one of its points."""
    return name.weight is None or name.is_single_method


# ---- the section -------------------------------------------------------------------------------------------


def make(report: Report) -> Section:
    cards = [
        (summary.condition.capitalize() if report.several_conditions else "", summary_blocks(summary))
        for summary in summarize_report(report.numbers)
    ]
    seeds = "training seeds where both have several, else over prompts."
    prompts = "prompts: they do not cover the luck of the training seed."
    note = Text(
        [
            "Rows are compared here without the points of the fronts. Not clearly above, or level: the 95% interval of"
            " the paired difference includes 0. The intervals are over",
            Break(),
            seeds if report.several_seeds else prompts,
        ],
        note=True,
    )
    return Section("What you see", "Summary", [Cards(cards), note])


def summary_blocks(summary: Summary) -> list[Block]:
    return [Points([*([sentence] for sentence in summary.sentences), *map(leader_words, summary.leaders)])]


def leader_words(leader: Leader) -> Words:
    """Who leads, and where the methods that were compared stand."""
    ties = f", not clearly above {', '.join(leader.ties)}." if leader.ties else ", clear of all others."
    words: Words = [f"Highest {leader.measure}: ", Mark(leader.leader, "strong"), ties]
    kinds = {"ahead": "up", "behind": "down"}
    for method, standing in leader.standings.items():
        parts: Words = []
        for place, others in standing.items():
            if others:
                text = f"{STANDINGS[place]} {', '.join(others)}"
                parts += ["; " if parts else " ", Mark(text, kinds[place]) if place in kinds else text]
        words += [f" {method} is", *parts, "."]
    return words
