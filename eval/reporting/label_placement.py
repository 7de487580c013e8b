"""Where to write the labels of a scatter plot so that none covers another, a marker or an error bar.

Greedy, deterministic: the most crowded point is served first, and takes the cheapest of the positions on
rings around it. All boxes are in pixels, [x0, y0, x1, y1].
"""

import numpy as np

RADII = (0.0, 6.0, 14.0, 24.0, 36.0, 50.0, 66.0, 84.0, 104.0, 126.0)
ANGLES = np.deg2rad([0, 45, 315, 90, 270, 135, 225, 180, 22, 338, 67, 293, 112, 248, 157, 203])
LABEL_COST, MARKER_COST, LINE_COST, OUTSIDE_COST, DISTANCE_COST = 50.0, 30.0, 3.0, 1000.0, 3.0


def overlap_areas(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that `box` [4] shares with each of `others` [n, 4] -> [n]."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def candidate_boxes(point: np.ndarray, size: np.ndarray, gap: float, scale: float) -> list[tuple[float, np.ndarray]]:
    """(distance, box) of every position tried for a label of `size` [2] near `point` [2], nearest first."""
    boxes = []
    for radius in RADII:
        for angle in ANGLES:
            direction = np.array([np.cos(angle), np.sin(angle)])
            # The box touches a circle around the point with the side or corner that faces it.
            center = point + direction * (gap + radius * scale) + np.sign(direction.round(6)) * size / 2
            boxes.append((radius, np.concatenate([center - size / 2, center + size / 2])))
    return boxes


def place_labels(
    points: np.ndarray,
    sizes: np.ndarray,
    markers: np.ndarray,
    lines: np.ndarray,
    frame: np.ndarray,
    scale: float = 1.0,
) -> np.ndarray:
    """Boxes for the labels.

    Args:
        points: [n, 2] what each label belongs to.
        sizes: [n, 2] width and height of each label.
        markers: [k, 4] boxes that a label must not cover (markers, error bars).
        lines: [l, 4] boxes it had better not cover (pieces of lines).
        frame: [4] the box to stay in.
        scale: pixels in the unit of the ring radii; grows with the resolution.

    Returns:
        [n, 4] boxes.
    """
    gap = 5.0 * scale
    spread = np.linalg.norm(points[:, None] - points[None], axis=-1)
    crowding = np.exp(-spread / (60 * scale)).sum(axis=1)
    placed = np.zeros((0, 4))
    boxes = np.zeros((len(points), 4))
    for index in np.argsort(-crowding, kind="stable"):
        best_cost = np.inf
        for distance, box in candidate_boxes(points[index], sizes[index], gap, scale):
            inside = overlap_areas(box, frame[None])[0]
            cost = (
                DISTANCE_COST * distance * scale
                + LABEL_COST * overlap_areas(box, placed).sum() / scale
                + MARKER_COST * overlap_areas(box, markers).sum() / scale
                + LINE_COST * overlap_areas(box, lines).sum() / scale
                + OUTSIDE_COST * (sizes[index].prod() - inside) / scale
            )
            if cost < best_cost:
                best_cost, boxes[index] = cost, box
        placed = np.vstack([placed, boxes[index]])
    return boxes
