"""The pictures of the report's results: the plane of two objectives, the table, the training curves.

Colors follow the method, fill follows the condition, so that a run looks the same everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from eval.label_placement import place_labels
from eval.report_tables import Table
from eval.runs import FAMILY_LABELS, Front, Run, RunName, objective_names

STYLES = {  # family: (color, marker)
    "sft": ("#444444", "s"),
    "ppo": ("#0072B2", "D"),
    "safe_rlhf": ("#B5528C", "^"),
    "fast_rl": ("#8A5A2B", "v"),
    "mgda": ("#C99700", "P"),
    "gapo": ("#C8102E", "*"),
    "p_gapo": ("#E8743B", "o"),
    "morlhf": ("#1B8A5A", "o"),
    "rewarded_soup": ("#7A5BB0", "o"),
    "upgrad": ("#1F4E79", "X"),
    "dualproj": ("#6C8EBF", "X"),
    "cagrad": ("#5E8C0A", "X"),
    "pcgrad": ("#0E7C86", "X"),
    "imtl_g": ("#9E9D24", "X"),
    "aligned_mtl": ("#AD1457", "X"),
    "fairgrad": ("#5D4037", "X"),
}
OTHER_COLORS = ("#7F7F7F", "#1F4E79", "#5E8C0A", "#0E7C86")
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
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.unicode_minus": True,
    "savefig.facecolor": "white",
}
CURVES = PAPER | {"font.size": 9, "axes.titlesize": 9.5}
DPI = 160


def run_style(name: RunName) -> tuple[str, str]:
    """(color, marker) of a run; families unknown here get one of a few other colors, by their name."""
    if name.family in STYLES:
        return STYLES[name.family]
    return OTHER_COLORS[sum(name.family.encode()) % len(OTHER_COLORS)], "o"


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


# ---- the plane of two objectives ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """What one panel shows: axis labels, and for each run (x, y, x half-width, y half-width) or None."""

    title: str
    x_label: str
    y_label: str
    locate: Callable[[Run], tuple[float, float, float, float] | None]


def objective_plane(title: str, names: list[str], scores: Callable[[Run], dict], suffix: str) -> Plane:
    """The first two objectives; with a single one, that one against the KL divergence to the reference."""

    def locate(run: Run) -> tuple[float, float, float, float] | None:
        found = scores(run)
        if any(name not in found for name in names[:2]):
            return None
        x = found[names[0]]
        if len(names) == 1:
            return x["mean"], run.evaluation["kl"], x["ci95"], 0.0
        y = found[names[1]]
        return x["mean"], y["mean"], x["ci95"], y["ci95"]

    y_label = f"{names[1]}  ({suffix})" if len(names) > 1 else "KL to the reference"
    return Plane(title, f"{names[0]}  ({suffix})", y_label, locate)


def pareto_planes(runs: list[Run]) -> list[Plane]:
    """Model scores and, where there are any, gold scores beside them."""
    planes = [
        objective_plane(
            "Model scores",
            objective_names(run.evaluation for run in runs),
            lambda run: run.objectives,
            "model score",
        )
    ]
    gold_names = objective_names(run.gold or {} for run in runs)
    if gold_names:
        planes.append(
            objective_plane("Gold scores", gold_names, lambda run: (run.gold or {}).get("objectives", {}), "gold score")
        )
    return planes


def draw_runs(axes: Axes, plane: Plane, runs: list[Run]) -> None:
    """Markers with their 95% intervals; hollow under a condition other than the default one."""
    for run in runs:
        place = plane.locate(run)
        if place is None:
            continue
        color, marker = run_style(run.name)
        x, y, x_half, y_half = place
        axes.errorbar(x, y, xerr=x_half, yerr=y_half, color=color, alpha=0.45, linewidth=1.1, capsize=0, zorder=3)
        axes.plot(
            x,
            y,
            marker=marker,
            markersize=13 if marker == "*" else 7.5,
            markerfacecolor="white" if run.name.condition else color,
            markeredgecolor=color if run.name.condition else "white",
            markeredgewidth=1.4 if run.name.condition else 0.8,
            zorder=5,
        )


def draw_fronts(axes: Axes, plane: Plane, fronts: list[Front]) -> list[np.ndarray]:
    """A line through the points of each front, by weight; dashed for variants. Returns the lines drawn."""
    lines = []
    for front in fronts:
        places = [plane.locate(run) for _, run in front.points]
        points = np.array([place[:2] for place in places if place is not None])
        if len(points) < 2:
            continue
        color = STYLES[front.family][0]
        axes.plot(
            *points.T,
            color=color,
            linewidth=1.8,
            alpha=0.75,
            zorder=2,
            linestyle="--" if front.variant else "-",
        )
        lines.append(points)
    return lines


def line_pieces(points: np.ndarray, width: float) -> np.ndarray:
    """Small boxes [n, 4] along a line through `points` [k, 2], for label placement."""
    pieces = []
    for start, end in zip(points[:-1], points[1:], strict=True):
        count = max(2, int(np.linalg.norm(end - start) / width))
        pieces.append(start + np.linspace(0, 1, count)[:, None] * (end - start))
    centers = np.concatenate(pieces)
    return np.concatenate([centers - width / 2, centers + width / 2], axis=1)


def label_runs(axes: Axes, plane: Plane, runs: list[Run], lines: list[np.ndarray], font_size: float) -> None:
    """Write every run's name beside its marker, clear of the other names, markers and error bars."""
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    to_pixels = axes.transData.transform
    shown = [(run, place) for run in runs if (place := plane.locate(run)) is not None]
    if not shown:
        return
    texts, sizes = [], []
    for run, _ in shown:
        color = run_style(run.name)[0]
        text = axes.text(
            0, 0, run.name.label, fontsize=font_size, color=darker(color), zorder=7, va="center", ha="center"
        )
        extent = text.get_window_extent(renderer)
        texts.append(text)
        sizes.append((extent.width + 2 * scale, extent.height + 1 * scale))
    points = np.array([to_pixels(place[:2]) for _, place in shown])
    markers = [np.concatenate([points - 5 * scale, points + 5 * scale], axis=1)]
    for _, (x, y, x_half, y_half) in shown:
        (x0, y0), (x1, y1) = to_pixels([(x - x_half, y - y_half), (x + x_half, y + y_half)])
        center_x, center_y = to_pixels((x, y))
        markers.append([[x0, center_y - scale, x1, center_y + scale], [center_x - scale, y0, center_x + scale, y1]])
    pieces = [line_pieces(to_pixels(line), 4 * scale) for line in lines]
    boxes = place_labels(
        points,
        np.array(sizes),
        np.concatenate(markers),
        np.concatenate([np.zeros((0, 4)), *pieces]),
        axes.get_window_extent(renderer).extents,
        scale,
    )
    to_data = axes.transData.inverted().transform
    for text, point, box in zip(texts, points, boxes, strict=True):
        text.set_position(to_data((box[:2] + box[2:]) / 2))
        nearest = np.clip(point, box[:2], box[2:])
        if np.linalg.norm(nearest - point) > 14 * scale:
            axes.plot(*to_data([point, nearest]).T, color="#999999", linewidth=0.7, zorder=1.5)


def darker(color: str) -> tuple[float, ...]:
    """The same hue, dark enough to read as small text."""
    return tuple(0.75 * channel for channel in to_rgb(color))


def front_legend(axes: Axes, fronts: list[Front]) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=STYLES[front.family][0],
            linewidth=1.8,
            linestyle="--" if front.variant else "-",
            label=f"{FAMILY_LABELS[front.family]} front" + (f" ({front.variant})" if front.variant else ""),
        )
        for front in fronts
    ]
    if handles:
        axes.legend(handles=handles, loc="best", frameon=True, framealpha=0.9, edgecolor=GRID, fontsize=9)


def plot_pareto(runs: list[Run], fronts: list[Front], path: Path) -> None:
    """pareto.png: every run in the plane of the first two objectives, up and right is better."""
    planes = pareto_planes(runs)
    crowd = min(1.0 + max(0, len(runs) - 12) / 40, 1.8)
    with plt.rc_context(PAPER):
        figure, panels = plt.subplots(
            1,
            len(planes),
            figsize=((6.6 * len(planes) if len(planes) > 1 else 8.5) * crowd, 5.6 * crowd),
            layout="constrained",
            squeeze=False,
        )
        drawn = []
        for axes, plane in zip(panels[0], planes, strict=True):
            lines = draw_fronts(axes, plane, fronts)
            draw_runs(axes, plane, runs)
            axes.margins(0.14)
            axes.set(title=plane.title, xlabel=f"{plane.x_label}  →", ylabel=f"{plane.y_label}  →")
            drawn.append((axes, plane, lines))
        front_legend(panels[0][0], fronts)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # labels are placed in pixels: nothing may move any more
        for axes, plane, lines in drawn:
            label_runs(axes, plane, runs, lines, font_size=8.5)
        save(figure, path)


# ---- the table ---------------------------------------------------------------------------------------------


def plot_table(table: Table, path: Path) -> None:
    """table1.png: rules above and below, best bold, second underlined."""
    row_height, name_width = 0.30, 0.4 + 0.085 * max(len(run.name.label) for run, _ in table.rows)
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
            axes.text(0.05, y, run.name.label, va="center", ha="left")
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


# ---- training curves ---------------------------------------------------------------------------------------


def curve_tags(runs: list[Run]) -> list[str]:
    """The tags to plot, in the order of the panels; cosines are in the picture of the conflict."""
    tags = list(dict.fromkeys(tag for run in runs for tag in run.metrics))
    prefixes = ("reward/", "kl", "response_length", "gradient/norm/")
    return [
        tag
        for prefix in prefixes
        for tag in tags
        if (tag.startswith(prefix) if prefix.endswith("/") else tag == prefix)
    ]


def smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over a tenth of the run; windows shrink at the ends; NaN is passed over."""
    half = max(1, len(values) // 20)
    return np.array(
        [
            np.nanmean(window) if np.isfinite(window := values[max(0, i - half) : i + half + 1]).any() else np.nan
            for i in range(len(values))
        ]
    )


def curve_colors(runs: list[Run]) -> dict[str, tuple[float, ...]]:
    """A color a run: the family's, dark to light over its base names (seeds and conditions share one)."""
    shades: dict[str, list[str]] = {}
    for run in runs:
        members = shades.setdefault(run.name.family, [])
        if run.name.base not in members:
            members.append(run.name.base)
    colors = {}
    for run in runs:
        members = shades[run.name.family]
        light = 0.55 * members.index(run.name.base) / max(1, len(members) - 1)
        color = np.array(to_rgb(run_style(run.name)[0]))
        colors[run.name.text] = tuple(color + (1 - color) * light)
    return colors


def tag_title(tag: str) -> str:
    """'gradient/norm/a' -> 'gradient norm: a'; 'response_length' -> 'response length'."""
    *kind, name = tag.split("/")
    return f"{' '.join(kind)}: {name}" if kind else tag.replace("kl", "KL").replace("_", " ")


def plot_training_curves(runs: list[Run], path: Path) -> bool:
    """training_curves.png: smoothed lines over faint raw ones. False, and no file, without metrics."""
    trained = [run for run in runs if run.metrics]
    tags = curve_tags(trained)
    if not tags:
        return False
    rows = -(-len(tags) // 4)
    columns = -(-len(tags) // rows)
    colors = curve_colors(trained)
    with plt.rc_context(CURVES):
        figure, panels = plt.subplots(rows, columns, figsize=(max(11, 3.3 * columns), 2.6 * rows), squeeze=False)
        for axes, tag in zip(panels.flat, tags, strict=False):
            draw_curves(axes, tag, trained, colors)
        for axes in panels.flat[len(tags) :]:
            axes.axis("off")
        add_run_legend(figure, trained, colors)
        save(figure, path)
    return True


def add_run_legend(figure: Figure, runs: list[Run], colors: dict[str, tuple[float, ...]]) -> None:
    """Make room below the panels for a legend of the runs."""
    legend_height = 0.22 * -(-len(runs) // 5)
    height = figure.get_figheight() + legend_height
    figure.set_figheight(height)
    handles = [
        Line2D([], [], color=colors[run.name.text], linestyle=line_style(run), label=run.name.label) for run in runs
    ]
    figure.legend(handles=handles, loc="lower center", ncol=min(5, len(runs)), frameon=False)
    figure.tight_layout(rect=(0, (legend_height + 0.1) / height, 1, 1))


def line_style(run: Run) -> str:
    """Dashed under a condition other than the default one."""
    return "--" if run.name.condition else "-"


def draw_curves(axes: Axes, tag: str, runs: list[Run], colors: dict[str, tuple[float, ...]]) -> None:
    for run in runs:
        if tag in run.metrics:
            steps, values = np.array(run.metrics[tag]).T
            draw_curve(axes, run, steps, values, smooth(values), colors[run.name.text], crowded=len(runs) > 16)
    axes.set_title(tag_title(tag), loc="left")
    mark_steps(axes)
    if tag.startswith("gradient/norm/"):
        use_log_scale(axes)


def draw_curve(
    axes: Axes,
    run: Run,
    steps: np.ndarray,
    values: np.ndarray,
    smoothed: np.ndarray,
    color: tuple[float, ...],
    crowded: bool,
) -> None:
    """A strong line over the faint one that it smooths; all [steps]."""
    axes.plot(steps, values, color=color, alpha=0.08 if crowded else 0.2, linewidth=0.9)
    axes.plot(steps, smoothed, color=color, linewidth=1.6, linestyle=line_style(run))


def mark_steps(axes: Axes) -> None:
    """x counts training steps: no fractions."""
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def use_log_scale(axes: Axes) -> None:
    """Logarithmic y with ticks in plain numbers, three a decade over a few; linear where nothing drawn is positive."""
    if not np.isfinite(axes.dataLim.minposy):
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 10000 * low else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
