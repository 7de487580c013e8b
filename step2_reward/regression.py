"""How good predicted ratings are: RMSE, correlations, calibration, their 95% intervals and a picture."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy
from matplotlib import pyplot
from scipy.stats import rankdata

from step2_reward.calibration import bootstrap_interval

BINS = 10
COLUMNS = 4  # panels in a row of the picture


def rmse(predicted: numpy.ndarray, ratings: numpy.ndarray) -> float:
    """Root of the mean squared error, in units of the ratings; [n] each."""
    return math.sqrt(numpy.square(predicted - ratings).mean())


def pearson(predicted: numpy.ndarray, ratings: numpy.ndarray) -> float:
    """Pearson's correlation; NaN where one of the two is constant; [n] each."""
    with numpy.errstate(invalid="ignore", divide="ignore"):
        return float(numpy.corrcoef(predicted, ratings)[0, 1])


def spearman(predicted: numpy.ndarray, ratings: numpy.ndarray) -> float:
    """Spearman's: Pearson's of the ranks, those of ties averaged; NaN where one of the two is constant; [n] each."""
    return pearson(rankdata(predicted), rankdata(ratings))


def figures(predicted: numpy.ndarray, ratings: numpy.ndarray, seed: int) -> dict[str, Any]:
    """Figures of one attribute with 95% intervals, None where a correlation is undefined; [n] each, n > 1."""
    found: dict[str, Any] = {"count": len(ratings), "mean": float(ratings.mean()), "std": float(ratings.std())}
    for name, statistic in (("rmse", rmse), ("pearson", pearson), ("spearman", spearman)):
        value = statistic(predicted, ratings)
        defined = not math.isnan(value)
        bounds = bootstrap_interval(statistic, (predicted, ratings), seed).tolist() if defined else None
        found[name] = {"value": value, "ci95": bounds} if defined else None
    return found | {"bins": bins(predicted, ratings)}


def bins(predicted: numpy.ndarray, ratings: numpy.ndarray) -> list[dict[str, Any]]:
    """Groups of equal size by what is predicted: mean prediction, mean rating with its normal 95% interval, count."""
    order = numpy.argsort(predicted, kind="stable")
    groups = [part for part in numpy.array_split(order, min(BINS, len(order))) if len(part)]
    return [
        {"predicted": float(predicted[part].mean()), "mean": float(ratings[part].mean()), "count": len(part)}
        | {"ci95": 1.96 * float(ratings[part].std(ddof=1)) / math.sqrt(len(part)) if len(part) > 1 else 0.0}
        for part in groups
    ]


def table_lines(attributes: dict[str, dict[str, Any]]) -> list[str]:
    """A row for every attribute, for people."""
    width = max((len(name) for name in attributes), default=0) + 2
    head = f"{'':<{width}}{'n':>6}  {'RMSE (spread of the ratings)':<31}{'Pearson':<24}Spearman"
    lines = [head.rstrip()]
    for name, found in attributes.items():
        error = f"{_shown(found['rmse'])} ({found['std']:.3f})"
        row = (
            f"{name:<{width}}{found['count']:>6}  {error:<30}{_shown(found['pearson']):<24}{_shown(found['spearman'])}"
        )
        lines.append(row.rstrip())
    return lines


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "undefined"
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


@pyplot.rc_context({"text.parse_math": False})  # names may hold anything
def plot(attributes: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean rating against mean prediction in groups of equal size, a panel an attribute."""
    columns = min(COLUMNS, max(1, len(attributes)))
    rows = max(1, math.ceil(len(attributes) / columns))
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 3.4 * rows), dpi=120, squeeze=False)
    for axis in axes.flatten()[len(attributes) :]:
        axis.axis("off")
    for axis, (name, found) in zip(axes.flatten(), attributes.items(), strict=False):
        x, y, bars = ([group[key] for group in found["bins"]] for key in ("predicted", "mean", "ci95"))
        ends = [min(x + y), max(x + y)]
        axis.plot(ends, ends, color="0.7", linewidth=1)
        axis.errorbar(x, y, yerr=bars, marker="o", markersize=4, linewidth=1, capsize=2)
        correlation = f", Pearson {found['pearson']['value']:.2f}" if found["pearson"] else ""
        axis.set_title(f"{name}\nRMSE {found['rmse']['value']:.2f}{correlation}, n = {found['count']}", fontsize=9)
        axis.set_xlabel("predicted rating")
        axis.set_ylabel("mean rating")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
