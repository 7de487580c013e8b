"""Ridge regressions of ratings on hidden states, one an attribute, without intercept (ArmoRM, stage 1)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy
from scipy import linalg

ALPHAS = tuple(10.0**exponent for exponent in range(-4, 5))
HELD_OUT = 0.2  # share of the rated replies that chooses alpha

# Pieces of the states, [rows, d] float32, and the index of their first row.
Pieces = Callable[[], Iterable[tuple[int, numpy.ndarray]]]


@dataclass(frozen=True)
class Regression:
    """What was fitted.

    Attributes:
        weights: [m, d] float64.
        alphas: [m], those chosen.
        errors: [m, alphas], mean squared errors on held-out replies.
        predicted: [n, m], of every reply, rated or not.
        held_out: [n] bool.
    """

    weights: numpy.ndarray
    alphas: numpy.ndarray
    errors: numpy.ndarray
    predicted: numpy.ndarray
    held_out: numpy.ndarray


def ridge(gram: numpy.ndarray, cross: numpy.ndarray, alphas: Iterable[float] = ALPHAS) -> numpy.ndarray:
    """argmin over w of ‖Xw − y‖² + α‖w‖² = (XᵀX + αI)⁻¹ Xᵀy, for several α from one eigendecomposition.

    Args:
        gram: XᵀX, [d, d].
        cross: Xᵀy, [d].

    Returns:
        [alphas, d] float64.
    """
    values, vectors = linalg.eigh(gram)
    values = values.clip(min=0.0)  # rounding
    rotated = vectors.T @ cross
    return numpy.stack([vectors @ (rotated / (values + alpha)) for alpha in alphas])


def hold_out(count: int, seed: int) -> numpy.ndarray:
    """[count] bool: a fifth of the rows, drawn."""
    chosen = numpy.zeros(count, dtype=bool)
    chosen[numpy.random.default_rng(seed).permutation(count)[: round(HELD_OUT * count)]] = True
    return chosen


def fit(pieces: Pieces, ratings: numpy.ndarray, seed: int, on_attribute: Callable[[int], None]) -> Regression:
    """A regression for every attribute, of the rows that are rated on it, its α by the error on a fifth of the rows.

    The weights are those of the other four fifths, as published.

    Args:
        ratings: [n, m] in [0, 1], NaN where there is none.
        on_attribute: told the number of each attribute that is done.
    """
    held_out = hold_out(len(ratings), seed)
    weights, chosen, errors = [], [], []
    for column in range(ratings.shape[1]):
        candidates = ridge(*normal_equations(pieces, ratings[:, column], ~held_out))
        errors.append(squared_errors(pieces, candidates, ratings[:, column], held_out))
        best = int(errors[-1].argmin())
        weights.append(candidates[best])
        chosen.append(ALPHAS[best])
        on_attribute(column + 1)
    found = numpy.stack(weights)
    predicted = numpy.concatenate([states.astype(numpy.float64) @ found.T for _, states in pieces()])
    return Regression(found, numpy.array(chosen), numpy.stack(errors), predicted, held_out)


def normal_equations(
    pieces: Pieces, ratings: numpy.ndarray, rows: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """XᵀX, [d, d], and Xᵀy, [d], of those `rows` ([n] bool) that are rated; float64."""
    gram = cross = 0.0
    for states, given in rated_pieces(pieces, ratings, rows):
        gram, cross = gram + states.T @ states, cross + states.T @ given
    return gram, cross


def squared_errors(
    pieces: Pieces, weights: numpy.ndarray, ratings: numpy.ndarray, rows: numpy.ndarray
) -> numpy.ndarray:
    """Mean squared error of each of the `weights`, [k, d], over those `rows` that are rated; [k]."""
    total, count = numpy.zeros(len(weights)), 0
    for states, given in rated_pieces(pieces, ratings, rows):
        total += numpy.square(states @ weights.T - given[:, None]).sum(axis=0)
        count += len(given)
    return total / count


def rated_pieces(
    pieces: Pieces, ratings: numpy.ndarray, rows: numpy.ndarray
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """States, [k, d] float64, and ratings, [k], of the rows that count."""
    for start, states in pieces():
        here = slice(start, start + len(states))
        count = rows[here] & ~numpy.isnan(ratings[here])
        yield states[count].astype(numpy.float64), ratings[here][count]
