"""Comparisons: signs, pairing, and intervals against scipy's own."""

import numpy as np
import pytest
from scipy import stats

from eval.reporting.comparisons import compare_runs
from eval.reporting.front_quality import BOOTSTRAP_SEED, RESAMPLES, draw_scores, resample_means
from tests.evaluations import make_run, noisy_run, summarize


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


def test_differences_are_over_what_both_have_judged():
    """Means of pairs objective by objective, and their bootstrap, by hand; a pair of nothing is left out."""
    generator = np.random.default_rng(5)
    ours, theirs = generator.normal(size=(2, 60, 2))
    ours[generator.random(60) < 0.4, 1] = theirs[generator.random(60) < 0.4, 1] = np.nan
    runs = [make_run("gapo_p1", ours), make_run("fast_rl", theirs)]
    entry = next(entry for entry in compare_runs(draw_scores(runs), None) if entry["metric"] == "average")
    differences = ours - theirs
    judged = ~np.isnan(differences)
    assert entry["pairs"] == judged[:, 1].sum() < min((~np.isnan(scores[:, 1])).sum() for scores in (ours, theirs))
    assert entry["difference"] == pytest.approx(np.nanmean(differences, axis=0).mean())
    weights = np.random.default_rng(BOOTSTRAP_SEED).multinomial(60, np.full(60, 1 / 60), size=RESAMPLES)
    drawn = (weights @ np.where(judged, differences, 0) / (weights @ judged)).mean(axis=-1)
    assert [entry["low"], entry["high"]] == pytest.approx(np.percentile(drawn, (2.5, 97.5)).tolist())

    first, second = np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[2.0, np.nan], [1.0, 5.0]])
    kinds = ("reward", "function")
    found = compare([
        make_run(f"{name}{seed}", scores, kinds=kinds)
        for seed, others in (("", second), ("#43", first + 1))
        for name, scores in (("gapo_p1", first), ("mgda", others))
    ])  # fmt: skip
    assert (
        found["balanced", "gapo_p1", "mgda", "harmlessness"] | {"seeds": 1, "pairs": 1, "difference": -1.0}
        == (found["balanced", "gapo_p1", "mgda", "harmlessness"])
    )
    assert found["balanced", "gapo_p1", "mgda", "helpfulness"]["seeds"] == 2
    assert "pairs" not in found["balanced", "gapo_p1", "mgda", "helpfulness"]
    alone = compare([make_run(name, scores, kinds=kinds) for name, scores in (("gapo_p1", first), ("mgda", second))])
    assert {key[3] for key in alone} == {"helpfulness", "hypervolume"}


def test_what_nobody_judges_leaves_the_others_as_they_are():
    """A run without any judgement of an objective stands in no comparison; scarce ones have an interval."""
    runs = [noisy_run(name, (place, 1)) for place, name in enumerate(("gapo_p1", "mgda", "fast_rl"))]
    for row in runs[2].evaluation["rows"]:
        row["scores"]["harmlessness"] = None
    runs[2].evaluation.update(summarize(runs[2].evaluation["rows"], "scores"))
    assert set(compare(runs)) == set(compare(runs[:2])) != set()
    assert draw_scores(runs[2:]).objectives == ["helpfulness"]
    scarce = resample_means(np.array([[1.0, np.nan], [2.0, 4.0], [3.0, np.nan]])[:, None])[:, 0]
    assert scarce[0].tolist() == [2.0, 4.0] and (scarce[:, 1] == 4.0).all() and not np.isnan(scarce).any()


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
