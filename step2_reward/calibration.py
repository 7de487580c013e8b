"""How good a score model is on held-out pairs: accuracy, calibration, their 95% intervals and a picture."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy
from matplotlib import pyplot
from scipy.special import expit

from utils.supervised.intervals import proportion

BINS = 10
RESAMPLES = 1000


def pairwise_hits(chosen: numpy.ndarray, rejected: numpy.ndarray) -> numpy.ndarray:
    """1 where the chosen response has the higher objective value, 0.5 at a tie; [n] each."""
    return (numpy.sign(chosen - rejected) + 1) / 2


def resamplings(count: int, seed: int, strata: numpy.ndarray | None = None) -> Iterator[numpy.ndarray]:
    """`RESAMPLES` bootstrap draws of `count` rows with replacement, as indices [count].

    Args:
        strata: [count]; as many rows as a stratum has are drawn from it. None: all rows are one.
    """
    generator = numpy.random.default_rng(seed)
    if strata is None:
        for _ in range(RESAMPLES):
            yield generator.integers(count, size=count)
        return
    order = numpy.argsort(strata, kind="stable")
    _, starts, sizes = numpy.unique(strata[order], return_index=True, return_counts=True)
    starts, sizes = numpy.repeat(starts, sizes), numpy.repeat(sizes, sizes)
    for _ in range(RESAMPLES):
        yield order[starts + generator.integers(sizes)]


def bootstrap(
    statistic: Callable[..., Any],
    arrays: Sequence[numpy.ndarray],
    seed: int,
    strata: numpy.ndarray | None = None,
) -> numpy.ndarray:
    """`statistic(*arrays)` of resampled rows, the same ones of every array; [RESAMPLES, ...].

    Args:
        statistic: arrays of n rows each -> a number, or an array of numbers.
        strata: see `resamplings`.
    """
    draws = resamplings(len(arrays[0]), seed, strata)
    return numpy.array([statistic(*(array[draw] for array in arrays)) for draw in draws])


def bootstrap_interval(
    statistic: Callable[..., Any],
    arrays: Sequence[numpy.ndarray],
    seed: int,
    strata: numpy.ndarray | None = None,
) -> numpy.ndarray:
    """Ends of the 95% percentile interval of `bootstrap`; [2, ...]. Resamples whose statistic is NaN are left out."""
    return numpy.nanquantile(bootstrap(statistic, arrays, seed, strata), [0.025, 0.975], axis=0)


def bin_of(probabilities: numpy.ndarray, low: float) -> numpy.ndarray:
    """Index of each probability's bin, of `BINS` equal ones on [low, 1]; [n] int."""
    return numpy.clip(((probabilities - low) / (1 - low) * BINS).astype(int), 0, BINS - 1)


def calibration_error(probabilities: numpy.ndarray, outcomes: numpy.ndarray, low: float = 0.0) -> float:
    """Expected calibration error: |mean outcome − mean probability| of bins, weighted by size; [n] each."""
    gaps = numpy.bincount(bin_of(probabilities, low), outcomes - probabilities, minlength=BINS)
    return float(numpy.abs(gaps).sum() / len(probabilities))


def calibration(probabilities: numpy.ndarray, outcomes: numpy.ndarray, low: float, seed: int) -> dict[str, Any]:
    """Calibration error with its 95% interval, and the bins behind it.

    The interval is the basic bootstrap's: resampling adds noise to every bin, which an absolute value never
    cancels, and the basic interval reflects that bias back.

    Args:
        probabilities: [n] in [low, 1].
        outcomes: [n], 1 where it came true.
        low: 0.5 when probabilities are those of the likelier of two outcomes, else 0.
    """
    error = calibration_error(probabilities, outcomes, low)
    resampled = partial(calibration_error, low=low)
    upper, lower = bootstrap_interval(resampled, (probabilities, outcomes), seed)
    bins = []
    for index in range(BINS):
        inside = bin_of(probabilities, low) == index
        if inside.any():
            bins.append({"probability": float(probabilities[inside].mean()), **proportion(outcomes[inside])})
    interval = [max(0.0, 2 * error - float(lower)), max(0.0, 2 * error - float(upper))]
    return {"error": error, "ci95": interval, "count": len(outcomes), "bins": bins}


def pair_calibration(chosen: numpy.ndarray, rejected: numpy.ndarray, seed: int) -> dict[str, Any]:
    """Of σ(|difference|), the probability that the response of higher value is the chosen one; [n] each."""
    return calibration(expit(numpy.abs(chosen - rejected)), pairwise_hits(chosen, rejected), 0.5, seed)


def sign_figures(costs: numpy.ndarray, signs: numpy.ndarray, seed: int) -> dict[str, Any] | None:
    """Accuracy of the sign and calibration of σ(cost) as the probability of harm; None without labels.

    Args:
        costs: [n].
        signs: [n], +1 harmful, −1 safe, 0 unknown.
    """
    known = signs != 0
    if not known.any():
        return None
    costs, harmful = costs[known], (signs[known] > 0).astype(float)
    hits = (costs > 0).astype(float) == harmful
    return {
        "sign_accuracy": proportion(hits.astype(float)),
        "sign_calibration": calibration(expit(costs), harmful, 0.0, seed),
    }


def figure_line(name: str, figures: dict[str, Any]) -> str:
    """A share or an error with its 95% interval and number of cases, for people."""
    low, high = figures["ci95"]
    value = figures.get("mean", figures.get("error"))
    return f"{name} {value:.3f} (95% interval {low:.3f} to {high:.3f}, n = {figures['count']})"


def plot(panels: dict[str, dict[str, Any]], path: Path) -> None:
    """Reliability diagram: outcome against predicted probability, a panel each, with Wilson intervals."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 4), dpi=120, squeeze=False)
    for axis, (title, figures) in zip(axes[0], panels.items(), strict=True):
        bins = figures["bins"]
        x, y = [b["probability"] for b in bins], [b["mean"] for b in bins]
        below = [max(0.0, b["mean"] - b["ci95"][0]) for b in bins]
        above = [max(0.0, b["ci95"][1] - b["mean"]) for b in bins]
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.errorbar(x, y, yerr=[below, above], marker="o", markersize=4, linewidth=1, capsize=2)
        axis.set_title(f"{title}\ncalibration error {figures['error']:.3f}, n = {figures['count']}", fontsize=9)
        axis.set_xlabel("predicted probability")
        axis.set_ylabel("observed frequency")
        axis.set_xlim(min(x) - 0.05, 1.02)
        axis.set_ylim(min(min(x), min(y)) - 0.05, 1.02)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
