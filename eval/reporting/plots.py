"""What all pictures of the report share, and the picture of a table.

Colors follow the method, fill follows the condition, so that a run looks the same everywhere.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from eval.reporting.tables import Table

INK, GRID = "#222222", "#E6E6E6"
PAPER = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a dollar sign
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.unicode_minus": True,
    "savefig.facecolor": "white",
}
CURVES = PAPER | {"font.size": 9, "axes.titlesize": 9.5}
DPI = 160
WIDTH, NARROW_WIDTH = 11.6, 8.5  # inches, of pictures with several panels and with one


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def darker(color: str) -> tuple[float, ...]:
    """The same hue, dark enough to read as small text."""
    return tuple(0.75 * channel for channel in to_rgb(color))


# ---- the table ---------------------------------------------------------------------------------------------


def plot_table(table: Table, path: Path) -> None:
    """A table as a picture: rules above and below, best bold, second underlined."""
    row_height, name_width = 0.30, 0.4 + 0.085 * max(len(table.row_label(run)) for run, _ in table.rows)
    widths = [
        0.35 + 0.085 * max(len(column.title), *(len(cells[index].text) for _, cells in table.rows))
        for index, column in enumerate(table.columns)
    ]
    edges = np.cumsum([name_width, *widths])
    height = row_height * (len(table.rows) + 2.65)
    with plt.rc_context(PAPER):
        figure = plt.figure(figsize=(edges[-1] + 0.2, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.1, edges[-1] + 0.1), ylim=(height, 0))
        axes.axis("off")
        draw_table_header(axes, table, edges, row_height)
        for index, (run, cells) in enumerate(table.rows):
            y = row_height * (index + 2.75)
            axes.text(0.05, y, table.row_label(run), va="center", ha="left")
            for cell, center in zip(cells, (edges[:-1] + edges[1:]) / 2, strict=True):
                draw_cell(axes, cell.text, center, y, cell.mark)
        axes.plot([0, edges[-1]], [height - 0.3 * row_height] * 2, color=INK, linewidth=1.4)
        save(figure, path)


def draw_table_header(axes: Axes, table: Table, edges: np.ndarray, row_height: float) -> None:
    """Group headings over their columns, column titles, and the rules around them."""
    axes.plot([0, edges[-1]], [0.25 * row_height] * 2, color=INK, linewidth=1.4)
    start = 0
    for title, span in table.groups:
        left, right = edges[start], edges[start + span]
        axes.text((left + right) / 2, 0.75 * row_height, title, va="center", ha="center", color="#555555")
        axes.plot([left + 0.12, right - 0.12], [1.2 * row_height] * 2, color="#999999", linewidth=0.8)
        start += span
    for column, center in zip(table.columns, (edges[:-1] + edges[1:]) / 2, strict=True):
        axes.text(center, 1.65 * row_height, column.title, va="center", ha="center", weight="bold")
    axes.text(0.05, 1.65 * row_height, "run", va="center", ha="left", weight="bold")
    axes.plot([0, edges[-1]], [2.15 * row_height] * 2, color=INK, linewidth=0.9)


def draw_cell(axes: Axes, text: str, x: float, y: float, mark: str) -> None:
    drawn = axes.text(x, y, text, va="center", ha="center", weight="bold" if mark == "best" else "normal")
    if mark == "second":
        extent = drawn.get_window_extent(axes.figure.canvas.get_renderer())
        (left, bottom), (right, _) = axes.transData.inverted().transform(extent.get_points())
        axes.plot([left, right], [bottom + 0.025] * 2, color=INK, linewidth=0.8)
