"""The planes of two objectives: where every policy stands, the fronts, and who moves under another condition."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.spatial import Delaunay

from eval.reporting.label_placement import place_labels
from eval.reporting.plots import GRID, NARROW_WIDTH, PAPER, WIDTH, darker, save
from eval.reporting.seeds import RunGroup
from eval.results.methods import FRONT, Weight, family_title, preference
from eval.results.runs import (
    Front,
    RunName,
    condition_title,
    find_fronts,
    find_stand_ins,
    objective_names,
)

LABEL_SIZE = 9
HEIGHT, SMALL_HEIGHT = 5.9, 4.4  # inches of a row of up to two panels, and of more
MOST_OBJECTIVES, MOST_COLUMNS = 4, 3  # whose pairs fit on a page; panels side by side
Place = tuple[float, float, float, float]  # x, y, and the half-widths of their intervals (0: none)


@dataclass(frozen=True)
class Plane:
    """What one panel shows: axis labels, and where a group of runs (or one seed) stands, or None."""

    title: str
    x_label: str
    y_label: str
    locate: Callable[[RunGroup], Place | None]


def objective_plane(title: str, names: Sequence[str], scores: Callable[[RunGroup], dict], suffix: str) -> Plane:
    """Two objectives; of a single one, that one against the KL divergence to the reference."""

    def locate(run: RunGroup) -> Place | None:
        found = scores(run)
        if any(name not in found for name in names):
            return None
        x = found[names[0]]
        if len(names) == 1:
            return x["mean"], run.evaluation["kl"], x.get("ci95", 0.0), 0.0
        y = found[names[1]]
        return x["mean"], y["mean"], x.get("ci95", 0.0), y.get("ci95", 0.0)

    y_label = f"{names[1]}  ({suffix})" if len(names) > 1 else "KL to the reference"
    return Plane(title, f"{names[0]}  ({suffix})", y_label, locate)


def shown_pairs(names: Sequence[str]) -> list[Sequence[str]]:
    """The objectives of each plane: every pair of the first `MOST_OBJECTIVES`, or the only one."""
    return list(combinations(names[:MOST_OBJECTIVES], 2)) or [names]


def score_planes(groups: Sequence[RunGroup]) -> list[list[Plane]]:
    """Rows of panels: the model scores of every pair of objectives, then the gold scores where there are any.

    Up to four panels stand in twos, so that they are large; of more, each kind of score has rows of its own.
    """
    model = [
        objective_plane("Model scores", pair, lambda run: run.objectives, "model score")
        for pair in shown_pairs(objective_names(group.evaluation for group in groups))
    ]
    gold_names = objective_names(group.gold or {} for group in groups)
    gold = [
        objective_plane("Gold scores", pair, lambda run: (run.gold or {}).get("objectives", {}), "gold score")
        for pair in (shown_pairs(gold_names) if gold_names else [])
    ]
    if len(model) + len(gold) <= 4:
        return in_rows([*model, *gold], 2)
    return [*in_rows(model, MOST_COLUMNS), *in_rows(gold, MOST_COLUMNS)]


def in_rows(planes: list[Plane], count: int) -> list[list[Plane]]:
    return [planes[start : start + count] for start in range(0, len(planes), count)]


# ---- markers and lines -------------------------------------------------------------------------------------


def draw_groups(axes: Axes, plane: Plane, groups: Sequence[RunGroup]) -> None:
    """Markers: means over seeds with the seeds as faint dots, or one seed with its 95% interval over prompts.

    Hollow under a condition other than the default one.
    """
    for group in groups:
        place = plane.locate(group)
        if place is None:
            continue
        color, marker = group.name.row.color, group.name.row.marker
        x, y, x_half, y_half = place
        axes.errorbar(x, y, xerr=x_half, yerr=y_half, color=color, alpha=0.4, linewidth=1.1, capsize=0, zorder=3)
        for seed in seed_places(plane, group):
            axes.plot(*seed, marker=".", color=color, markersize=5, alpha=0.35, markeredgewidth=0, zorder=2.5)
        axes.plot(
            x,
            y,
            marker=marker,
            markersize=13 if marker == "*" else 7.5,
            markerfacecolor="white" if group.name.condition else color,
            markeredgecolor=color if group.name.condition else "white",
            markeredgewidth=1.4 if group.name.condition else 0.8,
            zorder=5,
        )


def seed_places(plane: Plane, group: RunGroup) -> list[tuple[float, float]]:
    """Where the seeds of a group of several stand."""
    if len(group.runs) < 2:
        return []
    return [place[:2] for run in group.runs if (place := plane.locate(run)) is not None]


def draw_fronts(axes: Axes, plane: Plane, fronts: list[Front]) -> list[np.ndarray]:
    """Lines between the points of each front whose preferences are neighbors. Returns those drawn, [k, 2] each."""
    lines = []
    for front in fronts:
        found = [(weight, place) for weight, group in front.points if (place := plane.locate(group)) is not None]
        points = np.array([place[:2] for _, place in found]).reshape(-1, 2)
        paths = neighbors([weight for weight, _ in found])
        style = {"linewidth": 1.8, "alpha": 0.7} if len(paths) == 1 else {"linewidth": 1.1, "alpha": 0.45}
        for path in paths:
            axes.plot(*points[list(path)].T, color=front_color(front), zorder=2, **style)
            lines.append(points[list(path)])
    return lines


def neighbors(weights: Sequence[Weight]) -> list[Sequence[int]]:
    """Paths through points, as indices, that join neighboring preferences.

    One path by weight where the preferences lie on a line, as those of two objectives do; the edges of a
    triangulation of the triangle that those of three objectives lie in; none for more, which no plane can show.
    """
    if len(weights) < 2:
        return []
    places = np.array([preference(weight) for weight in weights])[:, :-1]
    on_a_line = np.linalg.matrix_rank(places - places[0], tol=1e-6) < 2
    if on_a_line:
        return [np.lexsort(places.T[::-1]).tolist()]
    if places.shape[1] > 2:
        return []
    triangles = Delaunay(places).simplices
    return sorted({tuple(sorted(edge)) for triangle in triangles.tolist() for edge in combinations(triangle, 2)})


def front_color(front: Front) -> str:
    weighted = next(group for _, group in front.points if group.name.family == front.family)
    return weighted.name.row.color


def front_handles(fronts: list[Front]) -> list[Line2D]:
    """What names the fronts in a legend."""
    style = {"linewidth": 1.8, "marker": "o", "markersize": 5}
    return [Line2D([], [], color=front_color(front), label=family_title(front.family), **style) for front in fronts]


def draw_moves(axes: Axes, plane: Plane, moves: list[tuple[RunGroup, RunGroup]]) -> list[np.ndarray]:
    """Arrows between the places of the same method under two conditions. Returns the lines drawn, [2, 2] each."""
    lines = []
    for start, end in moves:
        places = [plane.locate(start), plane.locate(end)]
        if None in places:
            continue
        points = np.array([place[:2] for place in places])
        color = end.name.row.color
        style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.5, "alpha": 0.8, "shrinkA": 5, "shrinkB": 6}
        axes.annotate("", points[1], points[0], arrowprops=style, zorder=4)
        lines.append(points)
    return lines


# ---- labels ------------------------------------------------------------------------------------------------


def short_label(name: RunName, fronts: list[Front]) -> str:
    """The weight alone for a point of a front, whose line the legend names; else the method."""
    on_line = name.row.place == FRONT and any(front.family == name.family for front in fronts)
    return name.row.detail if on_line else name.method


def line_pieces(points: np.ndarray, width: float) -> np.ndarray:
    """Small boxes [n, 4] along a line through `points` [k, 2], for label placement."""
    pieces = []
    for start, end in zip(points[:-1], points[1:], strict=True):
        count = max(2, int(np.linalg.norm(end - start) / width))
        pieces.append(start + np.linspace(0, 1, count)[:, None] * (end - start))
    centers = np.concatenate(pieces)
    return np.concatenate([centers - width / 2, centers + width / 2], axis=1)


def marker_boxes(axes: Axes, plane: Plane, groups: Sequence[RunGroup]) -> np.ndarray:
    """Boxes [n, 4] in pixels of markers, error bars, words and the legend, which no label may cover."""
    scale, to_pixels = axes.figure.dpi / 72, axes.transData.transform
    boxes = []
    for place in filter(None, map(plane.locate, groups)):
        x, y, x_half, y_half = place
        center_x, center_y = to_pixels((x, y))
        (x0, y0), (x1, y1) = to_pixels([(x - x_half, y - y_half), (x + x_half, y + y_half)])
        boxes.append([center_x - 5 * scale, center_y - 5 * scale, center_x + 5 * scale, center_y + 5 * scale])
        boxes.append([x0, center_y - scale, x1, center_y + scale])
        boxes.append([center_x - scale, y0, center_x + scale, y1])
    boxes += [text.get_window_extent().extents for text in axes.texts if text.get_text()]  # arrows have none
    if axes.get_legend():
        boxes.append(axes.get_legend().get_window_extent().extents)
    return np.array(boxes).reshape(-1, 4)


def label_groups(
    axes: Axes, plane: Plane, labels: list[tuple[RunGroup, str]], markers: np.ndarray, lines: list[np.ndarray]
) -> None:
    """Write labels beside their markers, clear of other labels and of `markers` [n, 4], off `lines` if possible."""
    scale, to_pixels = axes.figure.dpi / 72, axes.transData.transform
    shown = [(group, label, place) for group, label in labels if (place := plane.locate(group)) is not None]
    if not shown:
        return
    texts = [
        axes.text(
            0, 0, label, fontsize=LABEL_SIZE, color=darker(group.name.row.color), zorder=7, va="center", ha="center"
        )
        for group, label, _ in shown
    ]
    extents = [text.get_window_extent() for text in texts]
    points = np.array([to_pixels(place[:2]) for _, _, place in shown])
    seeds = [to_pixels(seed) for group, _, _ in shown for seed in seed_places(plane, group)]
    pieces = [line_pieces(to_pixels(line), 4 * scale) for line in lines]
    pieces += [np.concatenate([seed - 2 * scale, seed + 2 * scale])[None] for seed in seeds]
    boxes = place_labels(
        points,
        np.array([(extent.width + 2 * scale, extent.height + scale) for extent in extents]),
        markers,
        np.concatenate([np.zeros((0, 4)), *pieces]),
        axes.get_window_extent().extents,
        scale,
    )
    to_data = axes.transData.inverted().transform
    for text, point, box in zip(texts, points, boxes, strict=True):
        text.set_position(to_data((box[:2] + box[2:]) / 2))
        nearest = np.clip(point, box[:2], box[2:])
        distances = np.linalg.norm(np.clip(points, box[:2], box[2:]) - points, axis=-1)
        own = np.linalg.norm(nearest - point)
        if own > 14 * scale or own > distances.min() + scale:  # far away, or nearer to another marker
            axes.plot(*to_data([point, nearest]).T, color="#999999", linewidth=0.7, zorder=1.5)


# ---- pictures ----------------------------------------------------------------------------------------------


def panels_of(rows: list[list[Plane]], panels: np.ndarray) -> Iterator[tuple[Axes, Plane]]:
    """The panel of every plane, `panels` [rows, columns]; those without one are taken off the picture."""
    for planes, row in zip(rows, panels, strict=True):
        yield from zip(row, planes, strict=False)
        for unused in row[len(planes) :]:
            unused.remove()


def draw_planes(
    groups: Sequence[RunGroup],
    path: Path,
    draw_lines: Callable[[Axes, Plane], list[np.ndarray]],
    labels: list[tuple[RunGroup, str]],
    handles: list[Line2D],
) -> None:
    """The panels of `score_planes`, with the markers of `groups`, lines, labels and a legend."""
    rows = score_planes(groups)
    columns = max(map(len, rows))
    size = (WIDTH if columns > 1 else NARROW_WIDTH, len(rows) * (HEIGHT if columns < 3 else SMALL_HEIGHT))
    with plt.rc_context(PAPER):
        figure, panels = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
        drawn = []
        for axes, plane in panels_of(rows, panels):
            lines = draw_lines(axes, plane)
            draw_groups(axes, plane, groups)
            axes.margins(0.12)
            axes.set(title=plane.title, xlabel=f"{plane.x_label}  →", ylabel=f"{plane.y_label}  →")
            drawn.append((axes, plane, lines))
        if handles:
            panels[0][0].legend(handles=handles, loc="lower left", framealpha=0.9, edgecolor=GRID, fontsize=LABEL_SIZE)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # labels are placed in pixels: nothing may move any more
        for axes, plane, lines in drawn:
            label_groups(axes, plane, labels, marker_boxes(axes, plane, groups), lines)
        save(figure, path)


def plot_pareto(groups: Sequence[RunGroup], path: Path) -> None:
    """pareto.png: the policies of one condition in the plane of two objectives, up and right is better."""
    fronts = find_fronts(groups)
    labels = [(group, short_label(group.name, fronts)) for group in groups]
    draw_planes(groups, path, lambda axes, plane: draw_fronts(axes, plane, fronts), labels, front_handles(fronts))


def find_moves(groups: Sequence[RunGroup], condition: str) -> list[tuple[RunGroup, RunGroup]]:
    """(under the default condition, under `condition`) of every method that was trained under both."""
    default = {group.name.base: group for group in groups if not group.name.condition}
    return [
        (default[group.name.base], group)
        for group in groups
        if group.name.condition == condition and group.name.base in default
    ]


def plot_moves(groups: Sequence[RunGroup], condition: str, path: Path) -> None:
    """pareto_<condition>.png: who moves in the plane between the default condition and another one."""
    moves = find_moves(groups, condition)
    starts = [start for start, _ in moves]
    fixed = find_stand_ins(groups, condition)
    own = [group for group in groups if group.name.condition == condition]
    handles = [
        Line2D([], [], linestyle="", marker="o", color="#666666", label=condition_title("")),
        Line2D(
            [], [], linestyle="", marker="o", color="#666666", markerfacecolor="white", label=condition_title(condition)
        ),
    ]
    labels = [(group, group.name.method) for group in [*fixed, *own]]
    draw_planes([*starts, *fixed, *own], path, lambda axes, plane: draw_moves(axes, plane, moves), labels, handles)
