"""Comparisons: signs, pairing, and intervals against scipy's own."""

import numpy as np
import pytest
from scipy import stats

from eval.reporting.comparisons import compare_runs
from eval.reporting.front_quality import draw_scores
from tests.evaluations import make_run, noisy_run


def compare(runs: list) -> dict[tuple[str, str, str, str], dict]:
    entries = compare_runs(draw_scores(runs), draw_scores(runs, "gold"))
    found = {tuple(entry[key] for key in ("condition", "method", "other", "metric")): entry for entry in entries}
    assert len(found) == len(entries)
    return found


def test_interval_over_seeds_is_that_of_a_paired_t_test():
    """Seeds are paired by name; one that the other method lacks does not count."""
    ours = {"": (1.0, 2.0), "#43": (2.0, 2.5), "#44": (4.0, 1.0), "#45": (99.0, 99.0)}
    theirs = {"#44": (3.0, 1.5), "#43": (0.5, 2.0), "": (1.5, 1.0)}
    runs = [
        make_run(f"{base}@imbalanced{seed}", [place] * 3, gold=[place[::-1]] * 3)
        for base, seeds in (("gapo_p1", ours), ("mgda", theirs))
        for seed, place in seeds.items()
    ]
    found = compare(runs)
    assert set(found) == {
        ("imbalanced", "gapo_p1", "mgda", metric)
        for metric in ("average", "hypervolume", "gold_helpfulness", "gold_harmlessness", "gold_average",
                       "gold_hypervolume")
    }  # fmt: skip
    entry = found["imbalanced", "gapo_p1", "mgda", "gold_helpfulness"]
    a, b = ([seeds[seed][1] for seed in theirs] for seeds in (ours, theirs))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (entry["low"], entry["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert entry["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert entry["seeds"] == 3 and entry["interval"] == "seeds"
    reference = np.array([0.5, 1.0])
    boxes = [[np.prod(np.array(seeds[seed]) - reference) for seed in theirs] for seeds in (ours, theirs)]
    assert found["imbalanced", "gapo_p1", "mgda", "hypervolume"]["difference"] == pytest.approx(
        np.mean(boxes[0]) - np.mean(boxes[1])
    )


def test_interval_over_prompts_is_paired():
    """With one seed: about mean ± 1.96 standard errors of the differences, whatever the prompts' own spread."""
    generator = np.random.default_rng(3)
    difficulty, noise = generator.normal(scale=10, size=(200, 2)), generator.normal(scale=0.5, size=(200, 2))
    runs = [make_run("gapo_p1", difficulty + 0.2 + noise), make_run("fast_rl", difficulty)]
    entries = compare_runs(draw_scores(runs), None)
    assert [entry["metric"] for entry in entries] == ["average", "hypervolume"]
    entry, differences = entries[0], (0.2 + noise).mean(axis=1)
    assert entry["difference"] == pytest.approx(differences.mean()) and entry["interval"] == "prompts"
    half_width = 1.96 * differences.std(ddof=1) / np.sqrt(200)
    assert entry["low"] == pytest.approx(differences.mean() - half_width, abs=0.1 * half_width)
    assert entry["high"] == pytest.approx(differences.mean() + half_width, abs=0.1 * half_width)


def test_pairs_of_points_and_fronts():
    places = {
        "gapo_p1": (3, 3), "morlhf_0.5": (2, 2), "safe_rlhf": (4, 2), "p_gapo_0.2": (1, 5), "p_gapo_0.80": (5, 1),
        "morlhf_0.2": (1, 4), "morlhf_0.8": (4, 1), "rewarded_soup_0.8": (6, 0),
    }  # fmt: skip
    runs = [noisy_run(name, place, prompts=4) for name, place in places.items()] + [make_run("sft", [[0, 0]] * 4)]
    found = compare(runs)
    assert {key[1:3] for key in found} == {
        ("gapo_p1", "safe_rlhf"), ("gapo_p1", "morlhf_0.5"), ("p_gapo_0.2", "morlhf_0.2"),
        ("p_gapo_0.80", "morlhf_0.8"), ("p_gapo_0.80", "rewarded_soup_0.8"), ("p_gapo", "morlhf"),
    }  # fmt: skip
    assert {key[3] for key in found if key[1] == "p_gapo"} == {"hypervolume", "gold_hypervolume"}
    assert {key[0] for key in found} == {"balanced"}


def test_fronts_by_hand():
    """Whole fronts are compared on the weights that both have: boxes 1x5, 3x3, 5x1 against 1x4, 2x2, 4x1."""
    places = {
        "p_gapo_0.2": (1, 5), "gapo_p1": (3, 3), "p_gapo_0.8": (5, 1), "p_gapo_0.4": (9, 9),
        "morlhf_0.2": (1, 4), "morlhf_0.5": (2, 2), "morlhf_0.8": (4, 1), "sft": (0, 0),
    }  # fmt: skip
    found = compare([make_run(name, [place] * 2) for name, place in places.items()])
    assert found["balanced", "p_gapo", "morlhf", "hypervolume"]["difference"] == (5 + 6 + 2) - (4 + 2 + 2)


def test_nothing_to_compare():
    assert compare([make_run("gapo_p1", [[1, 1]] * 2), make_run("mgda#43", [[1, 1]] * 2)]) == {}
    assert compare([make_run("gapo_p1", [[1, 1]] * 2), make_run("mgda@imbalanced", [[1, 1]] * 2)]) == {}
