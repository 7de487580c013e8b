"""How often scores order pairs rightly: by subset, in averages over subsets, and of one model less another.

An average is a weighted sum of the subsets' accuracies. Its interval is that of a bootstrap over the pairs inside each
subset; accuracies of pairs that all count alike have Wilson intervals.
"""

from collections.abc import Sequence
from typing import Any

import numpy

from step2_reward.calibration import bootstrap_interval, pairwise_hits
from step2_reward.rewardbench import ORDER, SECTIONS
from utils.supervised.intervals import proportion

ALL_PAIRS, MEAN_OF_SUBSETS, SCORE = "all pairs", "mean of subsets", "RewardBench score"
WHOLE, NAMELESS = "all", "(none)"  # subset of pairs where none has one, and where others have


def group_pairs(subsets: Sequence[str]) -> tuple[list[str], numpy.ndarray]:
    """Names of the subsets, RewardBench's in its order before others in the data's, and the index of every pair's."""
    nameless = NAMELESS if any(subsets) else WHOLE
    labels = [subset or nameless for subset in subsets]
    present = dict.fromkeys(labels)
    names = [name for name in ORDER if name in present]
    names += [name for name in present if name not in ORDER]
    places = {name: index for index, name in enumerate(names)}
    return names, numpy.array([places[label] for label in labels])


def subset_means(values: numpy.ndarray, codes: numpy.ndarray, count: int) -> numpy.ndarray:
    """Means of `values` [n] by subset, of which `codes` [n] has the indices; [count], 0 where a subset has none."""
    sizes = numpy.bincount(codes, minlength=count)
    return numpy.bincount(codes, values, minlength=count) / numpy.maximum(sizes, 1)


def average_weights(names: Sequence[str], sizes: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """{average: the weight of every subset, 1 in sum}, of the subsets that have pairs; empty where there is one.

    RewardBench's sections and its score, their mean, where there are subsets of it; else the mean over subsets.

    Args:
        sizes: [subsets], pairs of each.
    """
    there = sizes > 0
    sections = {}
    for section, counts in SECTIONS.items():
        weights = numpy.array([counts.get(name, 0.0) for name in names]) * there
        if weights.any():
            sections[section] = weights / weights.sum()
    if sections:
        return {SCORE: numpy.mean(list(sections.values()), axis=0), **sections}
    return {MEAN_OF_SUBSETS: there / there.sum()} if there.sum() > 1 else {}


def weighted_averages(
    values: numpy.ndarray, codes: numpy.ndarray, names: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """{average: its mean, 95% interval and number of pairs} of values of pairs, [n], in the subsets `codes`, [n]."""
    sizes = numpy.bincount(codes, minlength=len(names))
    weights = average_weights(names, sizes)
    if not weights:
        return {}
    table = numpy.stack(list(weights.values()))

    def averages(values: numpy.ndarray, codes: numpy.ndarray) -> numpy.ndarray:
        return table @ subset_means(values, codes, len(names))

    low, high = bootstrap_interval(averages, (values, codes), seed, strata=codes)
    return {
        name: {"mean": float(mean), "ci95": [float(low[i]), float(high[i])], "count": int(sizes[table[i] > 0].sum())}
        for i, (name, mean) in enumerate(zip(weights, averages(values, codes), strict=True))
    }


def accuracies(values: numpy.ndarray, codes: numpy.ndarray, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Of one model: 'averages' and 'subsets', each {name: accuracy with interval and counts}, and numbers of pairs.

    Args:
        values: [n, 2] of (chosen, rejected), higher is better, NaN where there is no judgement: such pairs are left
            out, and averages are over the subsets that are left.
    """
    hits = pairwise_hits(*values.T)
    judged = ~numpy.isnan(hits)
    hits, codes, missing = hits[judged], codes[judged], int((~judged).sum())
    counts = {"pairs": len(hits), "not_judged": missing, "ties": int((hits == 0.5).sum())}
    if not len(hits):
        return counts | {"averages": {}, "subsets": {}}
    subsets = {name: hits[codes == index] for index, name in enumerate(names)}
    return counts | {
        "averages": {ALL_PAIRS: proportion(hits), **weighted_averages(hits, codes, names, seed)},
        "subsets": {
            name: proportion(part) | {"ties": int((part == 0.5).sum())} for name, part in subsets.items() if len(part)
        },
    }


def accuracy_differences(
    first: numpy.ndarray, other: numpy.ndarray, codes: numpy.ndarray, names: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """{average: first's less other's, with the interval of a paired bootstrap}, over the pairs that both judge.

    Args:
        first, other: as `values` of `accuracies`.
    """
    differences = pairwise_hits(*first.T) - pairwise_hits(*other.T)
    both = ~numpy.isnan(differences)
    differences, codes = differences[both], codes[both]
    if not len(differences):
        return {}
    low, high = bootstrap_interval(numpy.mean, (differences,), seed)
    overall = {"mean": float(differences.mean()), "ci95": [float(low), float(high)], "count": len(differences)}
    return {ALL_PAIRS: overall, **weighted_averages(differences, codes, names, seed)}
