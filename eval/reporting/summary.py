"""What the numbers say, in a few lines a condition: extremes, leaders and ties, where GAPO stands.

Every word is decided by figures and their 95% intervals; what an interval does not tell apart is called a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.reporting.comparisons import FRONT, METHOD, Metric, difference_interval, mean_metrics, volume_metrics
from eval.reporting.results import Numbers
from eval.reporting.seeds import RunGroup
from eval.reporting.tables import MISSING, Cell, Column, Table, format_number
from eval.results.runs import (
    FAMILY_LABELS,
    FRONT_FAMILIES,
    SINGLE_RUNS,
    Front,
    Run,
    condition_title,
    find_conditions,
    find_fronts,
    find_stand_ins,
    objective_names,
    parse_run_name,
)

METRIC_TITLES = {
    "average": "average of the model scores",
    "gold_average": "average of the gold scores",
    "hypervolume": "hypervolume, model scores",
    "gold_hypervolume": "hypervolume, gold scores",
}
KIND_TITLES = {"model": "model scores", "gold": "gold scores"}


@dataclass(frozen=True)
class Heading:
    """The head of a table's row that is no run; it has what a run's name has for tables."""

    label: str
    text: str = ""
    variant: str = ""

    @property
    def name(self) -> "Heading":
        return self

    @property
    def method(self) -> str:
        return self.label


@dataclass(frozen=True)
class Leader:
    """The highest row of a measure, the rows that its 95% interval does not tell from it, and where GAPO stands."""

    measure: str
    leader: str
    ties: list[str]
    ahead: list[str]
    level: list[str]
    behind: list[str]


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
    single = [group for group in own if group.name.weight is None or group.name.base in SINGLE_RUNS]
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
    """What a condition of scaled scores is."""
    scales = {(name, scale) for group in groups for name, scale in group.args.get("score_scale") or [] if scale != 1}
    found = " and ".join(f"{name} by {scale:g}" for name, scale in sorted(scales))
    return [f"Training multiplied the scores of {found}; all figures here are in original units."] if found else []


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
    """Whether fronts are ordered by preference: more weight on the first objective, more of it and less of others."""
    verdicts: dict[str, list[str]] = {}
    for front in fronts:
        groups = [group for _, group in front.points]
        ordered = [
            kind
            for kind in KIND_TITLES
            if all(score_entries(group).get(kind) for group in groups) and is_ordered(groups, kind)
        ]
        known = [kind for kind in KIND_TITLES if all(score_entries(group).get(kind) for group in groups)]
        on = " and ".join(KIND_TITLES[kind] for kind in ordered)
        verdict = f"on {on}" + ("" if ordered == known else " only") if ordered else "on no kind of score"
        verdicts.setdefault(verdict, []).append(FAMILY_LABELS[front.family])
    found = "; ".join(f"{', '.join(names)} {verdict}" for verdict, names in verdicts.items())
    return [f"Fronts ordered by preference: {found}."] if found else []


def front_sentences(numbers: Numbers, condition: str) -> list[str]:
    """How the hypervolume of P-GAPO's front compares with that of the others."""
    sentences = []
    for name in ("hypervolume", "gold_hypervolume"):
        standing = method_standing(numbers, condition, FRONT, name)
        words = {"ahead": "ahead of", "level": "level with", "behind": "behind"}
        found = [f"{words[place]} {', '.join(others)}" for place, others in standing.items() if others]
        if found:
            sentences.append(f"Fronts by {METRIC_TITLES[name]}: {FAMILY_LABELS[FRONT]} is {'; '.join(found)}.")
    return sentences


def is_ordered(groups: list[RunGroup], kind: str) -> bool:
    """By weight, the first objective's mean rises and the second's falls."""
    scores = [[entry["mean"] for entry in score_entries(group)[kind].values()] for group in groups]
    steps = np.diff(np.array(scores), axis=0)
    return bool((steps[:, 0] > 0).all() and (steps[:, 1:2] < 0).all())


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
        values = {group.name.text: np.mean([metric([run])[0] for run in group.runs]) for group in known}
        if len(values) < 2:
            continue
        best = max(known, key=lambda group: values[group.name.text])
        ties = [group for group in known if group is not best and is_tie(metric, best, group)]
        ties.sort(key=lambda group: -values[group.name.text])
        leader = f"{best.name.method} {format_number(values[best.name.text], 2)}"
        shown = [f"{group.name.method} {format_number(values[group.name.text], 2)}" for group in ties]
        leaders.append(Leader(METRIC_TITLES[name], leader, shown, **method_standing(numbers, condition, METHOD, name)))
    return leaders


def is_tie(metric: Metric, best: RunGroup, other: RunGroup) -> bool:
    """Whether the 95% interval of their paired difference includes 0; True where no seed is common to them."""
    pairs = [(one, two) for one in best.runs for two in other.runs if one.name.seed == two.name.seed]
    if not pairs:
        return True
    return difference_interval(np.array([metric([one]) - metric([two]) for one, two in pairs]))["low"] <= 0


def method_standing(numbers: Numbers, condition: str, method: str, metric: str) -> dict[str, list[str]]:
    """The methods that `method` is ahead of, level with and behind in one measure."""
    standing: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for entry in numbers.comparisons:
        if (entry["condition"], entry["method"], entry["metric"]) == (condition_title(condition), method, metric):
            standing[difference_mark(entry) or "level"].append(parse_run_name(entry["other"]).method)
    return standing


def difference_mark(entry: dict[str, Any]) -> str:
    """'ahead' or 'behind' where the interval excludes 0, else ''."""
    if entry["low"] > 0:
        return "ahead"
    return "behind" if entry["high"] < 0 else ""


# ---- tables ------------------------------------------------------------------------------------------------


def interval_cell(entry: dict[str, float] | None, decimals: int = 2, factor: float = 1.0, mark: str = "") -> Cell:
    """A figure with its interval in brackets."""
    if entry is None:
        return Cell(MISSING)
    mean, low, high = (format_number(factor * entry[key], decimals) for key in ("mean", "low", "high"))
    return Cell(f"{mean} [{low}, {high}]", mark=mark)


def quality_tables(numbers: Numbers) -> list[tuple[str, Table]]:
    """[(condition, table)]: hypervolume, spacing and dominated share of the fronts, by kind of score."""
    titles = {"hypervolume": "hypervolume", "spacing": "spacing", "dominated_share": "dominated, %"}
    kinds = [kind for kind, entries in numbers.front_quality.items() if entries]
    columns = [Column((name,), KIND_TITLES[kind], titles[name], ranked=False) for kind in kinds for name in titles]
    columns = [Column(("weights",), "front", "weights"), *columns]
    entries = {
        (entry["condition"], entry["front"], kind): entry for kind in kinds for entry in numbers.front_quality[kind]
    }
    tables: dict[str, list] = {}
    for condition, family in dict.fromkeys(key[:2] for key in entries):
        found = [entries.get((condition, family, kind)) for kind in kinds]
        weights = next(entry["weights"] for entry in found if entry)
        cells = [Cell(", ".join(f"{weight:g}" for weight in weights))]
        for entry in found:
            share = entry and entry["dominated_share"]
            cells += [interval_cell(entry and entry["hypervolume"]), interval_cell(entry and entry["spacing"])]
            cells.append(interval_cell(share, 0, 100))
        tables.setdefault(condition, []).append((Heading(FAMILY_LABELS[family], family), cells))
    return [(condition, Table(columns, rows)) for condition, rows in tables.items()]


def comparison_tables(numbers: Numbers) -> list[tuple[str, str, Table]]:
    """[(condition, method, table)]: method minus other by metric; marked where the 95% interval excludes 0.

    GAPO's table comes first, those of the points of the P-GAPO front are one.
    """
    blocks: dict[tuple[str, str], dict[tuple[str, str], dict[str, dict]]] = {}
    for entry in numbers.comparisons:
        family = parse_run_name(entry["method"]).family
        block = blocks.setdefault((entry["condition"], FAMILY_LABELS.get(family, family)), {})
        block.setdefault((entry["method"], entry["other"]), {})[entry["metric"]] = entry
    return [(*key, comparison_table(pairs)) for key, pairs in blocks.items()]


def comparison_table(pairs: dict[tuple[str, str], dict[str, dict]]) -> Table:
    metrics = list(dict.fromkeys(metric for entries in pairs.values() for metric in entries))
    columns = [Column((metric,), metric_kind(metric), metric_title(metric), ranked=False) for metric in metrics]
    columns.sort(key=lambda column: column.group != KIND_TITLES["model"])
    rows = []
    for (method, other), entries in pairs.items():
        cells = [difference_cell(entries.get(column.path[0])) for column in columns]
        rows.append((Heading(f"{contender(method)} − {contender(other)}", f"{method} - {other}"), cells))
    return Table(columns, rows)


def contender(name: str) -> str:
    """A policy's method; for a front's bare family name, the front."""
    return f"{FAMILY_LABELS[name]} front" if name in FRONT_FAMILIES else parse_run_name(name).method


def metric_kind(metric: str) -> str:
    return KIND_TITLES["gold" if metric.startswith("gold_") else "model"]


def metric_title(metric: str) -> str:
    return metric.removeprefix("gold_")


def difference_cell(entry: dict[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(MISSING)
    return interval_cell({**entry, "mean": entry["difference"]}, mark=difference_mark(entry))
