"""Intervals of what is counted on held-out data."""

from typing import Any

import numpy


def proportion(hits: numpy.ndarray) -> dict[str, Any]:
    """Share of `hits` ([n], each 0 or 1; a tie may count 0.5) with its Wilson 95% interval."""
    from scipy.stats import binomtest  # takes most of a second

    interval = binomtest(round(float(hits.sum())), len(hits)).proportion_ci(method="wilson")
    return {"mean": float(hits.mean()), "ci95": [interval.low, interval.high], "count": len(hits)}
