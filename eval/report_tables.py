"""The report's tables as data: columns, cells, the best and second best of a column, and their csv files.

One `Table` feeds the markdown, the page and the picture, so that the three never disagree.
"""

import csv
import io
from dataclasses import dataclass
from typing import Any

from eval.runs import Front, Run, objective_names

MISSING = "–"


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
        """(figure, half-width of its 95% interval); None where there is none."""
        entry: Any = figures
        for key in self.path:
            entry = (entry or {}).get(key)
        if self.has_interval and entry is not None:
            return entry["mean"], entry["ci95"]
        return entry, None


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
class Table:
    columns: list[Column]
    rows: list[tuple[Run, list[Cell]]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns: (title, number of columns), in order."""
        titles = [column.group for column in self.columns]
        return [(title, titles.count(title)) for title in dict.fromkeys(titles)]


def table_columns(runs: list[Run]) -> list[Column]:
    """Model scores, how far the policy moved, gold scores; a column that no run fills is left out."""
    model, policy, gold = "model scores", "policy", "gold scores"
    names = objective_names(run.evaluation for run in runs)
    gold_names = objective_names(run.gold or {} for run in runs)
    columns = [
        *(Column(("objectives", name), model, name, has_interval=True) for name in names),
        Column(("harmless_ratio",), model, "harmless %", decimals=1),
        Column(("average",), model, "average"),
        Column(("kl",), policy, "KL", ranked=False),
        Column(("response_length",), policy, "length", decimals=1, ranked=False),
        *(Column(("gold", "objectives", name), gold, name, has_interval=True, prefix="gold ") for name in gold_names),
        Column(("gold", "harmless_ratio"), gold, "harmless %", decimals=1, prefix="gold "),
    ]
    return [column for column in columns if any(column.value(run.evaluation)[0] is not None for run in runs)]


def format_number(value: float | None, decimals: int) -> str:
    """Fixed decimals, a true minus sign never on zero, a dash for nothing."""
    if value is None:
        return MISSING
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


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


def build_table(runs: list[Run]) -> Table:
    """The table of results."""
    return fill_table(table_columns(runs), [(run, run.evaluation) for run in runs])


def figures_by_key(run: Run, columns: list[Column]) -> dict[str, float | None]:
    """{column: figure, column_ci95: half-width} of one run, in the order of the columns."""
    row: dict[str, float | None] = {}
    for column in columns:
        row[column.key], half_width = column.value(run.evaluation)
        if column.has_interval:
            row[f"{column.key}_ci95"] = half_width
    return row


def to_csv(header: list[str], rows: list[dict[str, Any]]) -> str:
    """None becomes an empty field; floats are written to 6 decimals."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=header, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()


def table_csv(runs: list[Run]) -> str:
    """One line a run."""
    columns = table_columns(runs)
    rows = [{"run": run.name.text, **figures_by_key(run, columns)} for run in runs]
    return to_csv(list(rows[0]), rows)


def front_csv(runs: list[Run], fronts: list[Front]) -> str:
    """One line a front point: method, condition and seed, weight of the first objective, run, its scores."""
    columns = table_columns(runs)
    rows = [
        {
            "front": front.family,
            "variant": front.variant,
            "weight": weight,
            "run": run.name.text,
            **figures_by_key(run, columns),
        }
        for front in fronts
        for weight, run in front.points
    ]
    header = ["front", "variant", "weight", "run", *figures_by_key(runs[0], columns)]
    return to_csv(header, rows)
