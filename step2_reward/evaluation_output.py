"""The tables of an evaluation of score models, for a page of markdown and for a terminal, and its picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from step2_reward.rewardbench import ORDER
from utils.process.plain_text import markdown_text, printable

Table = list[list[str]]  # the header first; the first column and the header hold names
COUNTS = {"ties": "ties", "not_judged": "not judged", "truncated": "truncated"}  # of a model's pairs
MOST_SUBSETS = 40  # of the picture and of a terminal's table: the largest
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of models, over and over
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more, so that seven models differ
LONGEST_NAME = 40  # characters in the picture


def show_figure(entry: Mapping[str, Any] | None, sign: str = "") -> str:
    """'0.931 [0.902, 0.953]' of a mean and its interval; a dash where there is none."""
    if entry is None:
        return "–"
    mean, (low, high) = entry.get("mean", entry.get("error")), entry["ci95"]
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def averages_table(models: Mapping[str, Any]) -> Table:
    """Averages by model, with its calibration error and what is to be known of its pairs."""
    titles = dict.fromkeys(title for model in models.values() for title in model["averages"])
    rows = [[title, *(show_figure(model["averages"].get(title)) for model in models.values())] for title in titles]
    if any("calibration" in model for model in models.values()):
        rows.append(["calibration error", *(show_figure(model.get("calibration")) for model in models.values())])
    rows += [[title, *(str(model[key]) for model in models.values())] for key, title in COUNTS.items()]
    return [["accuracy", *models], *rows]


def subsets_table(models: Mapping[str, Any], sizes: Mapping[str, int]) -> Table:
    """Accuracies by subset and model; `sizes` are the subsets' pairs."""

    def cell(entry: Mapping[str, Any] | None, size: int) -> str:
        remarks = [f"{entry['ties']} tied"] if entry and entry["ties"] else []
        remarks += [f"{entry['count']} judged"] if entry and entry["count"] < size else []
        return show_figure(entry) + (f" ({', '.join(remarks)})" if remarks else "")

    rows = [
        [name, str(size), *(cell(model["subsets"].get(name), size) for model in models.values())]
        for name, size in sizes.items()
    ]
    return [["subset", "pairs", *models], *rows]


def differences_table(differences: Sequence[Mapping[str, Any]]) -> Table:
    """The first model's averages less those of every other, and on how many pairs."""
    titles = dict.fromkeys(title for entry in differences for title in entry["averages"])
    rows = [[title, *(show_figure(entry["averages"].get(title), "+") for entry in differences)] for title in titles]
    rows.append(["judged by both", *(str(entry["pairs"]) for entry in differences)])
    return [[f"{differences[0]['model']} over", *(entry["other"] for entry in differences)], *rows]


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables must know."""
    lines = [
        "Intervals are 95%: Wilson's of accuracies of subsets and of all pairs, a bootstrap's elsewhere, over the pairs"
        " of each subset. Ties count half; pairs that a model does not judge are left out for it."
    ]
    there = evaluation["subsets"]
    absent = [name for name in ORDER if name not in there]
    if 0 < len(absent) < len(ORDER):
        lines.append(f"Not in the data, and so in no average: {', '.join(absent)} of RewardBench.")
    return lines


def tables_of(evaluation: Mapping[str, Any], most_subsets: int | None = None) -> dict[str, Table]:
    """{title: table}; subsets are left out where there is only one, else the largest are shown."""
    models, sizes = evaluation["models"], largest(evaluation["subsets"], most_subsets)
    tables = {"Accuracy": averages_table(models)}
    if evaluation["differences"]:
        tables["Differences"] = differences_table(evaluation["differences"])
    if len(sizes) > 1:
        tables["Subsets"] = subsets_table(models, sizes)
    return tables


def largest(sizes: Mapping[str, int], most: int | None) -> dict[str, int]:
    """The subsets with the most pairs, in their order."""
    kept = set(sorted(sizes, key=lambda name: -sizes[name])[:most])
    return {name: size for name, size in sizes.items() if name in kept}


def title_of(evaluation: Mapping[str, Any]) -> str:
    subsets = len(evaluation["subsets"])
    counts = f"{evaluation['pairs']} pairs" + (f" of {subsets} subsets" if subsets > 1 else "")
    return f"{counts} of {evaluation['args']['data']}, ordered by {evaluation['args']['preference_label']}"


def page(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as markdown."""
    parts = [f"# {markdown_text(title_of(evaluation))}"]
    for title, table in tables_of(evaluation).items():
        cells = [[markdown_text(cell) if not r or not c else cell for c, cell in enumerate(row)]
                 for r, row in enumerate(table)]  # fmt: skip
        rule = ["---", *["---:"] * (len(table[0]) - 1)]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])]
    parts += ["![accuracy by subset and model](accuracy.png)", *notes(evaluation)]
    return "\n\n".join(parts) + "\n"


def console_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """The same for a terminal."""
    lines = [title_of(evaluation)]
    for table in tables_of(evaluation, MOST_SUBSETS).values():
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines.append("")
        for name, *cells in table:
            padded = [name.ljust(widths[0]), *(c.rjust(width) for c, width in zip(cells, widths[1:], strict=True))]
            lines.append("  ".join(padded).rstrip())
    if (left := len(evaluation["subsets"]) - MOST_SUBSETS) > 0:
        lines.append(f"and {left} smaller subsets")
    return [printable(line) for line in [*lines, "", *notes(evaluation)]]


def picture(evaluation: Mapping[str, Any]) -> bytes:
    """A png: accuracies with their intervals, averages above subsets, models side by side."""
    models, sizes = evaluation["models"], largest(evaluation["subsets"], MOST_SUBSETS)
    averages = dict.fromkeys(title for model in models.values() for title in model["averages"])
    titles = [("averages", title, title) for title in averages]
    titles += [("subsets", name, f"{shortened(name)} ({size})") for name, size in sizes.items() if len(sizes) > 1]
    height = 1.6 + len(titles) * (0.15 + 0.06 * len(models))  # inches
    with pyplot.rc_context({"text.parse_math": False, "font.size": 9}):  # names may hold a dollar sign
        figure, axes = pyplot.subplots(figsize=(8, height), dpi=120, layout="constrained")
        lowest = 0.5
        for index, (name, model) in enumerate(models.items()):
            entries = [model[part].get(title) for part, title, _ in titles]
            draw_model(axes, shortened(name), index, len(models), entries)
            lowest = min([lowest, *(entry["ci95"][0] for entry in entries if entry)])
        draw_rows(axes, [shown for *_, shown in titles], len(averages))
        axes.set(xlim=(lowest - 0.02, 1.01), xlabel="accuracy, with 95% intervals; the dotted line is chance")
        figure.legend(loc="outside upper center", ncols=min(len(models), 3), frameon=False)
        content = io.BytesIO()
        figure.savefig(content)
        pyplot.close(figure)
    return content.getvalue()


def draw_model(axes: Axes, name: str, index: int, models: int, entries: Sequence[Mapping[str, Any] | None]) -> None:
    """Dots of one model, entry i a little above or below the height i; None: no dot."""
    shift = 0.7 * ((index + 0.5) / models - 0.5)
    drawn = [(height + shift, entry["mean"], *entry["ci95"]) for height, entry in enumerate(entries) if entry]
    y, mean, low, high = zip(*drawn, strict=True) if drawn else ((), (), (), ())
    color = COLORS[index % len(COLORS)]
    axes.hlines(y, low, high, color=color, linewidth=1.2, alpha=0.7)
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(mean, y, linestyle="", marker=marker, markersize=4, color=color, label=name)


def draw_rows(axes: Axes, names: Sequence[str], averages: int) -> None:
    """Names and bands of the rows, a line below the first `averages` of them, and chance."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=0)
    for label in axes.get_yticklabels()[:averages]:
        label.set_fontweight("bold")
    axes.axhline(averages - 0.5, color="0.5", linewidth=0.8)
    axes.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def shortened(name: str) -> str:
    """A name that has room in the picture."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
