"""The report's tables as data: columns, cells, the best and second best of a column, and their csv files.

One `Table` feeds the markdown, the page and the picture, so that the three never disagree.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.reporting.seeds import RunGroup
from eval.reporting.units import harmless_title, share_a_unit
from eval.results.methods import show_weight
from eval.results.runs import Front, Run, condition_title, find_conditions, find_stand_ins, objective_names

KIND_TITLES = {"model": "model scores", "gold": "gold scores"}
MISSING = "–"
MOST_DECIMALS = 8


@dataclass(frozen=True)
class Column:
    """One figure of a run, found at `path` among its nested figures (an evaluation, for the table of results).

    `ranked` columns (higher is better) mark their highest values; the others have no better side. `prefix` tells
    columns of the same title apart where no group stands over them.
    """

    path: tuple[str, ...]
    group: str
    title: str
    decimals: int = 2
    ranked: bool = True
    has_interval: bool = False
    prefix: str = ""

    @property
    def key(self) -> str:
        """Its name in the csv files: 'helpfulness', 'gold_helpfulness', 'gold_harmless_ratio', 'kl'."""
        return f"gold_{self.path[-1]}" if self.path[0] == "gold" else self.path[-1]

    def value(self, figures: dict[str, Any]) -> tuple[float | None, float | None]:
        """(figure, its spread); None where there is none.

        The spread is the standard deviation over seeds where the figures have one ('sd', of the same shape), else
        the half-width of the 95% interval over prompts.
        """
        entry, deviation = follow(figures, self.path), follow(figures.get("sd"), self.path)
        if self.has_interval and entry is not None:
            return entry["mean"], entry.get("ci95", deviation)
        return entry, deviation


def follow(figures: Any, path: tuple[str, ...]) -> Any:
    """The entry at `path` of nested figures, None where it ends early."""
    for key in path:
        figures = (figures or {}).get(key)
    return figures


@dataclass(frozen=True)
class Cell:
    """`mark` is 'best', 'second' or ''."""

    value: str
    half_width: str = ""
    mark: str = ""

    @property
    def text(self) -> str:
        return f"{self.value} ± {self.half_width}" if self.half_width else self.value


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
class Table:
    """Rows of runs or groups of runs, with their cells in the order of the columns.

    Attributes:
        spread: what stands behind ±, as a sentence; '' where nothing does.
        references: names (`name.text`) of the rows that are repeated from the default condition.
    """

    columns: list[Column]
    rows: list[tuple[Run, list[Cell]]]
    spread: str = ""
    references: frozenset[str] = frozenset()

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns: (title, number of columns), in order."""
        titles = [column.group for column in self.columns]
        return [(title, titles.count(title)) for title in dict.fromkeys(titles)]

    def row_label(self, run: Run) -> str:
        """The method alone where the table is one of a single condition; rows repeated from another say so."""
        if run.name.text in self.references:
            return f"{run.name.method} ({condition_title(run.name.condition)})"
        variants = {other.name.variant for other, _ in self.rows if other.name.text not in self.references}
        return run.name.method if len(variants) == 1 else run.name.label


def table_columns(runs: Sequence[Run]) -> list[Column]:
    """Model scores, how far the policy moved, gold scores; a column that no run fills is left out.

    An average over objectives in different units has no better side: which run leads is a matter of the units.
    """
    model, policy, cost, gold = KIND_TITLES["model"], "policy", "training", KIND_TITLES["gold"]
    names = objective_names(run.evaluation for run in runs)
    gold_names = objective_names(run.gold or {} for run in runs)
    harmless = harmless_title(runs)
    columns = [
        *(Column(("objectives", name), model, name, has_interval=True) for name in names),
        Column(("harmless_ratio",), model, harmless, decimals=1),
        Column(("average",), model, "average", ranked=share_a_unit(names, runs)),
        Column(("kl",), policy, "KL", ranked=False),
        Column(("response_length",), policy, "length", decimals=1, ranked=False),
        Column(("cost", "seconds"), cost, "seconds", decimals=0, ranked=False),
        Column(("cost", "forward_passes"), cost, "sequences read", decimals=0, ranked=False),
        *(Column(("gold", "objectives", name), gold, name, has_interval=True, prefix="gold ") for name in gold_names),
        Column(("gold", "harmless_ratio"), gold, harmless, decimals=1, prefix="gold "),
    ]
    return [column for column in columns if any(column.value(run.evaluation)[0] is not None for run in runs)]


def format_number(value: float | None, decimals: int) -> str:
    """Fixed decimals, a true minus sign never on zero, a dash for nothing."""
    if value is None:
        return MISSING
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def count_range(counts: Iterable[int]) -> str:
    """'256', or '1–5' for counts that differ."""
    found = set(counts)
    return "–".join(str(count) for count in sorted({min(found), max(found)}))


def decimals_of(values: Sequence[float], least: int = 2) -> int:
    """Decimals that leave the largest of these figures two digits, at least `least`."""
    largest = max(map(abs, values))
    return min(max(least, 1 - math.floor(math.log10(largest))), MOST_DECIMALS) if largest > 0 else least


def interval_cell(
    entry: dict[str, float] | None, decimals: int = 2, factor: float = 1.0, mark: str = "", small: bool = False
) -> Cell:
    """A figure with its interval in brackets; a `small` one keeps its digits."""
    if entry is None:
        return Cell(MISSING)
    figures = [factor * entry[key] for key in ("mean", "low", "high")]
    digits = decimals_of(figures, decimals) if small else decimals
    mean, low, high = (format_number(figure, digits) for figure in figures)
    return Cell(f"{mean} [{low}, {high}]", mark=mark)


def mark_best(values: list[float | None]) -> list[str]:
    """'best' for the highest, 'second' for the next; equal values share a mark, a lone value gets none."""
    ranking = sorted({value for value in values if value is not None}, reverse=True)
    marks = dict(zip(ranking, ("best", "second"), strict=False)) if len(ranking) > 1 else {}
    return ["" if value is None else marks.get(value, "") for value in values]


def column_cells(column: Column, figures: list[dict[str, Any]]) -> list[Cell]:
    """Marks are given on the rounded values: what looks equal is marked equal."""
    values = [column.value(entry) for entry in figures]
    rounded = [None if value is None else round(value, column.decimals) for value, _ in values]
    marks = mark_best(rounded) if column.ranked else [""] * len(values)
    return [
        Cell(
            format_number(value, column.decimals),
            "" if half_width is None else format_number(half_width, column.decimals),
            mark,
        )
        for (value, half_width), mark in zip(values, marks, strict=True)
    ]


def fill_table(columns: list[Column], rows: list[tuple[Run, dict[str, Any]]]) -> Table:
    """The table of `columns` with one row for each (run, its figures)."""
    cells = [column_cells(column, [figures for _, figures in rows]) for column in columns]
    return Table(columns, [(run, [column[index] for column in cells]) for index, (run, _) in enumerate(rows)])


def build_table(runs: Sequence[Run]) -> Table:
    """The table of results, of runs or groups of runs."""
    table = fill_table(table_columns(runs), [(run, run.evaluation) for run in runs])
    return replace(table, spread=describe_spread(runs))


def build_tables(groups: list[RunGroup]) -> list[tuple[str, Table]]:
    """[(condition, its table)], the default condition ('balanced') first; best and second within a table.

    Other conditions repeat the rows of the default one that hold for them, too (see `find_stand_ins`), and name
    them in `references`.
    """
    tables = []
    for condition in find_conditions(groups):
        references = frozenset(group.name.text for group in find_stand_ins(groups, condition))
        rows = [group for group in groups if group.name.condition == condition or group.name.text in references]
        tables.append((condition_title(condition), replace(build_table(rows), references=references)))
    return tables


def describe_spread(runs: Sequence[Run]) -> str:
    """What ± is in a table of these rows."""
    counts = {len(run.runs) for run in runs if isinstance(run, RunGroup)} - {1}
    single = [run for run in runs if not (isinstance(run, RunGroup) and len(run.runs) > 1)]
    prompts = "the half-width of the 95% interval over prompts"
    if not counts:
        return f"± is {prompts}."
    text = f"± is the standard deviation over {count_range(counts)} seeds"
    return f"{text}; of {', '.join(run.name.method for run in single)} {prompts}." if single else f"{text}."


def figures_by_key(run: Run, columns: list[Column], seeds: bool = False) -> dict[str, float | None]:
    """{column: figure, column_ci95: half-width} of one run, in the order of the columns.

    With `seeds`, every column has its standard deviation over seeds, column_sd, before the half-width; of the two
    the one that the row does not have is None.
    """
    row: dict[str, float | None] = {}
    for column in columns:
        row[column.key], spread = column.value(run.evaluation)
        if seeds:
            row[f"{column.key}_sd"] = spread if "sd" in run.evaluation else None
        if column.has_interval:
            row[f"{column.key}_ci95"] = None if "sd" in run.evaluation else spread
    return row


def to_csv(header: list[str], rows: list[dict[str, Any]]) -> str:
    """None becomes an empty field; floats are written to 6 decimals."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=header, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()


def table_csv(groups: list[RunGroup]) -> str:
    """One line a group of runs; condition, number of seeds and deviations where some group has several seeds."""
    columns = table_columns(groups)
    several = any(len(group.runs) > 1 for group in groups)
    rows = []
    for group in groups:
        seeds = {"condition": condition_title(group.name.condition), "seeds": len(group.runs)} if several else {}
        rows.append({"run": group.name.text, **seeds, **figures_by_key(group, columns, several)})
    return to_csv(list(rows[0]), rows)


def front_csv(runs: list[Run], fronts: list[Front]) -> str:
    """One line a front point: method, condition and seed, weight of the first objective (or all), run, its scores."""
    columns = table_columns(runs)
    rows = [
        {
            "front": front.family,
            "variant": front.variant,
            "weight": show_weight(weight),
            "run": run.name.text,
            **figures_by_key(run, columns),
        }
        for front in fronts
        for weight, run in front.points
    ]
    header = ["front", "variant", "weight", "run", *figures_by_key(runs[0], columns)]
    return to_csv(header, rows)
