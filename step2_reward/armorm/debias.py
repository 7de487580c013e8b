"""Taking verbosity out of the other attributes' rewards (ArmoRM, eq. 5 and the published script)."""

import warnings
from collections.abc import Sequence

import numpy
from scipy.stats import spearmanr

# The published grid.
PENALTIES = (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, *(round(0.05 * step, 2) for step in range(4, 20)))
THRESHOLD = 0.03


def penalties(
    rewards: numpy.ndarray, verbosity: int, threshold: float = THRESHOLD, grid: Sequence[float] = PENALTIES
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Of each attribute j the least p with Spearman(r_j − p r_v, r_v) ≤ threshold, 1 if none will do, 0 of
    a reward that is constant.

    Verbosity's own is 1: its reward is taken out as a whole, as in the published script.

    Args:
        rewards: [n, m] of a reference set.
        verbosity: the column v.

    Returns:
        The penalties and the correlations that they leave, [m] each; NaN where a reward is constant.
    """
    found = numpy.ones(rewards.shape[1])
    for column in range(rewards.shape[1]):
        if column != verbosity:
            fitting = (p for p in grid if not correlation(rewards, column, verbosity, p) > threshold)
            found[column] = next(fitting, 1.0)
    left = [correlation(rewards, column, verbosity, found[column]) for column in range(rewards.shape[1])]
    return found, numpy.array(left)


def correlation(rewards: numpy.ndarray, column: int, verbosity: int, penalty: float) -> float:
    """Spearman's correlation of a penalised reward with verbosity's; NaN where it is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input, for which NaN is the answer
        penalised = rewards[:, column] - penalty * rewards[:, verbosity]
        return float(spearmanr(penalised, rewards[:, verbosity]).statistic)


def transform(found: numpy.ndarray, verbosity: int) -> numpy.ndarray:
    """T of r' = r T: the identity, with the penalties taken from verbosity's row; [m] -> [m, m]."""
    matrix = numpy.eye(len(found))
    matrix[verbosity] -= found
    return matrix
