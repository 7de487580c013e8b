"""Paired differences: one method minus another."""

from typing import Any

from eval.reporting.blocks import MARKDOWN, PAGE, Figures, Mark, Report, Section, Text, Words
from eval.reporting.comparisons import difference_mark
from eval.reporting.results import Numbers
from eval.reporting.tables import KIND_TITLES, MISSING, Cell, Column, Heading, Table, count_range, interval_cell
from eval.results.methods import family_title, is_front_family
from eval.results.runs import parse_run_name

PLACE = 50
Pairs = dict[tuple[str, str], dict[str, dict[str, Any]]]  # {(method, other): {metric: entry}}


def make(report: Report) -> Section | None:
    tables = comparison_tables(report.numbers)
    if not tables:
        return None
    blocks = []
    for condition, method, table, of_fronts in tables:
        title = f"{method}, {condition}" if report.several_conditions else method
        folded = f"{title}: weight by weight and front by front" if of_fronts else ""
        blocks.append(Figures(table, "difference", title, folded, dense=True))
    seeds, prompts = (
        "of the t distribution over training seeds where both have several, else over prompts",
        "over prompts",
    )
    paired = f"Paired differences with 95% intervals, {seeds if report.several_seeds else prompts}"
    arrows: Words = [". ", Mark("▲", "up"), " and ", Mark("▼", "down"), ": the interval excludes 0, for and against the"
                     " first method."]  # fmt: skip
    blocks += [
        Text([f"{paired}; bold: the interval excludes 0.", *judged_note(report.numbers)], only=MARKDOWN),
        Text([paired, *arrows, *judged_note(report.numbers)], note=True, only=PAGE),
    ]
    return Section("One method minus another", "Comparisons", blocks)


def judged_note(numbers: Numbers) -> list[str]:
    """On how many prompts differences are, where not all responses are judged."""
    counts = [entry["pairs"] for entry in numbers.comparisons if "pairs" in entry]
    prompts = f"{count_range(counts)} of {numbers.draws['model'].prompts} prompts" if counts else ""
    return [f" Differences of means are over the prompts where both responses are judged: {prompts}."] if counts else []


def comparison_tables(numbers: Numbers) -> list[tuple[str, str, Table, bool]]:
    """[(condition, method, table, whether it is one of fronts)]: method minus other by metric.

    Marked where the 95% interval excludes 0. A table a single method, those of the points of a front are one.
    """
    tables: dict[tuple[str, str, bool], Pairs] = {}
    for entry in numbers.comparisons:
        name = parse_run_name(entry["method"])
        of_fronts = is_front_family(name.text) or not name.is_single_method
        pairs = tables.setdefault((entry["condition"], family_title(name.family), of_fronts), {})
        pairs.setdefault((entry["method"], entry["other"]), {})[entry["metric"]] = entry
    return [(title, method, comparison_table(pairs), fronts) for (title, method, fronts), pairs in tables.items()]


def comparison_table(pairs: Pairs) -> Table:
    metrics = list(dict.fromkeys(metric for entries in pairs.values() for metric in entries))
    columns = [Column((metric,), metric_kind(metric), metric_title(metric), ranked=False) for metric in metrics]
    columns.sort(key=lambda column: column.group != KIND_TITLES["model"])
    rows = []
    for (method, other), entries in pairs.items():
        cells = [difference_cell(column.path[0], entries.get(column.path[0])) for column in columns]
        rows.append((Heading(f"{contender(method)} − {contender(other)}", f"{method} - {other}"), cells))
    return Table(columns, rows)


def contender(name: str) -> str:
    """A policy's method; for a front's bare family name, the front."""
    return f"{family_title(name)} front" if is_front_family(name) else parse_run_name(name).method


def metric_kind(metric: str) -> str:
    return KIND_TITLES["gold" if metric.startswith("gold_") else "model"]


def metric_title(metric: str) -> str:
    return metric.removeprefix("gold_")


def difference_cell(metric: str, entry: dict[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(MISSING)
    small = metric.endswith("hypervolume")
    return interval_cell({**entry, "mean": entry["difference"]}, mark=difference_mark(entry), small=small)
