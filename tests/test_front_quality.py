"""Front quality: against closed forms, an independent exact formula, Monte Carlo, and known sampling distributions."""

from itertools import combinations

import numpy as np
import pytest

from eval.reporting import front_quality
from eval.reporting.front_quality import (
    average_seeds,
    dominated_share,
    draw_scores,
    find_rivals,
    find_seeded_fronts,
    hypervolume,
    interval,
    row_hypervolumes,
    spacing,
)
from eval.results.runs import find_fronts
from tests.evaluations import make_run, noisy_run


def by_inclusion_and_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume of a union of boxes from the volumes of all their intersections."""
    boxes, volume = np.maximum(points - reference, 0), 0.0
    for size in range(1, len(boxes) + 1):
        volume += (-1) ** (size + 1) * sum(
            boxes[list(chosen)].min(axis=0).prod() for chosen in combinations(range(len(boxes)), size)
        )
    return volume


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([[2.0, 3.0]], [0.0, 1.0], 4.0),
        ([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], [0.0, 0.0], 6.0),
        ([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0], [3.0, 1.0]], [0.0, 0.0], 5.0),  # dominated, equal, unsorted
        ([[5.0, -1.0], [-1.0, 5.0]], [0.0, 0.0], 0.0),  # each below the reference in one objective
        ([[5.0, -1.0], [1.0, 1.0]], [0.0, 0.0], 1.0),
        ([[-2.0], [3.0]], [1.0], 2.0),
        ([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], [0.0, 0.0, 0.0], 4.0),
    ],
)
def test_hypervolume_by_hand(points, reference, volume):
    assert hypervolume(np.array(points), np.array(reference)) == pytest.approx(volume, abs=1e-12)


@pytest.mark.parametrize(("count", "objectives"), [(1, 2), (7, 2), (6, 3), (5, 4)])
def test_hypervolume_against_inclusion_and_exclusion(count: int, objectives: int):
    generator = np.random.default_rng(count)
    points, reference = generator.normal(size=(20, count, objectives)), generator.normal(size=objectives) - 1
    expected = [by_inclusion_and_exclusion(each, reference) for each in points]
    assert max(expected) > 1
    np.testing.assert_allclose(hypervolume(points, reference), expected, rtol=1e-9, atol=1e-12)


def test_hypervolume_against_monte_carlo():
    generator = np.random.default_rng(0)
    points = generator.uniform(size=(6, 3))
    hits = (generator.uniform(size=(200_000, 1, 3)) < points).all(axis=-1).any(axis=-1)
    assert hypervolume(points, np.zeros(3)) == pytest.approx(hits.mean(), abs=0.005)
    assert hypervolume(np.zeros((0, 3)), np.zeros(3)) == hypervolume(np.zeros((0, 1)), np.zeros(1)) == 0


def test_spacing_by_hand():
    even = np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    uneven = np.array([[0.0, 3.0], [0.5, 2.5], [3.0, 0.0]])  # nearest L1 distances 1, 1, 5
    assert spacing(even) == 0
    np.testing.assert_allclose(spacing(np.stack([uneven, uneven[[2, 0, 1]]])), np.std([1, 1, 5], ddof=1))
    assert np.isnan(spacing(even[:2])) and np.isnan(spacing(even[:1]))


def test_dominated_share_by_hand():
    points = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 2.0]])
    assert dominated_share(points, np.array([[1.0, 2.0]])) == 0.25  # an equal point does not dominate
    assert dominated_share(points, np.array([[1.0, 2.0], [2.0, 0.5]])) == 0.5
    assert (
        dominated_share(points, np.array([[9.0, 9.0]])) == 1 and dominated_share(points, np.array([[-1.0, -1.0]])) == 0
    )
    assert dominated_share(np.stack([points, points + 9]), np.array([[5.0, 5.0]])).tolist() == [1, 0]


def test_reference_is_the_nadir_of_the_experts():
    runs = [
        make_run("sft", [[-9.0, -9.0]] * 2),
        make_run("ppo_helpfulness", [[4.0, -1.0]] * 2),
        make_run("ppo_helpfulness#43", [[4.0, -3.0]] * 2),
        make_run("ppo_harmlessness", [[-1.0, 5.0]] * 2),
        make_run("ppo_harmlessness@imbalanced", [[-7.0, 9.0]] * 2),
    ]
    assert draw_scores(runs).reference.tolist() == [-1, -2]
    assert draw_scores(runs[:3]).reference.tolist() == [-9, -9]  # without an expert: the lowest of all
    single = [
        make_run(name, [[value]] * 2, objectives=("helpfulness",))
        for name, value in (("sft", 1), ("ppo_helpfulness", 2))
    ]
    assert draw_scores(single).reference.tolist() == [1]


def test_draws_need_shared_prompts_and_scores():
    runs = [make_run("sft", [[1.0, 2.0]] * 3, gold=[[0.0, 1.0]] * 3), make_run("mgda", [[2.0, 2.0]] * 3)]
    assert draw_scores(runs).prompts == 3 and draw_scores(runs[1:], "gold") is None
    assert [run.name.text for run in draw_scores(runs, "gold").runs] == ["sft"]
    for row in runs[1].evaluation["rows"][1:]:
        row["source"] += " of another file"
    assert draw_scores(runs) is None


def test_shared_prompts_alone_count():
    """Rows are paired by source, whatever their order."""
    runs = [make_run(name, [[float(i), 0.0] for i in range(4)]) for name in ("sft", "mgda")]
    runs[1].evaluation["rows"][0]["source"] = "other:1"
    runs[1].evaluation["rows"].reverse()
    draws = draw_scores(runs)
    assert draws.prompts == 3 and draws.means["sft"][0].tolist() == [2.0, 0.0]
    np.testing.assert_allclose(draws.means["sft"], draws.means["mgda"])


def test_intervals_follow_the_sampling_distribution(monkeypatch):
    """The bootstrap's standard error is s / sqrt(n), for any memory limit; the same draws every time."""
    runs = [noisy_run("sft", (0.0, 1.0), prompts=100), noisy_run("mgda", (0.0, 1.0), prompts=100)]
    draws = draw_scores(runs)
    scores = np.array([list(row["scores"].values()) for row in runs[0].evaluation["rows"]])
    assert len(draws.means["sft"]) == 1 + front_quality.RESAMPLES
    np.testing.assert_allclose(draws.means["sft"][0], scores.mean(axis=0))
    np.testing.assert_allclose(draws.means["sft"][1:].std(axis=0), scores.std(axis=0) / 10, rtol=0.06)
    monkeypatch.setattr(front_quality, "BYTES_AT_ONCE", 1000)
    np.testing.assert_allclose(draw_scores(runs).means["sft"], draws.means["sft"])


def test_interval_covers_and_shrinks():
    """95% intervals of a policy's box cover the true one about that often; four times the prompts halve them."""
    reference, covered, widths = np.zeros(2), 0, {20: [], 80: []}
    for trial in range(120):
        for prompts, found in widths.items():
            values = np.random.default_rng([trial, prompts]).normal(size=(prompts, 1, 2)) + 3
            box = interval(hypervolume(front_quality.resample_means(values), reference))
            found.append(box["high"] - box["low"])
            covered += prompts == 80 and box["low"] <= 9 <= box["high"]
    assert 104 <= covered <= 119
    assert np.mean(widths[20]) / np.mean(widths[80]) == pytest.approx(2, abs=0.15)


def test_seeds_are_resampled_too():
    """Seeds that differ widen the interval, by sd sqrt((n - 1) / n) / sqrt(n); equal ones do not."""
    generator = np.random.default_rng(0)
    prompts = generator.normal(scale=0.01, size=1 + front_quality.RESAMPLES)
    prompts[0] = 0
    seeds = np.array([1.0, 2.0, 4.0])
    averaged = average_seeds(seeds[:, None] + prompts)
    assert averaged[0] == pytest.approx(seeds.mean())
    assert averaged[1:].std() == pytest.approx(seeds.std() / np.sqrt(3), rel=0.06)
    np.testing.assert_allclose(average_seeds(np.stack([prompts] * 3)), prompts)
    np.testing.assert_allclose(average_seeds(prompts[None]), prompts)


def front_runs() -> list:
    """P-GAPO and MORLHF on two seeds each; at seed 43 there is no MORLHF 0.8. All but SFT are exact."""
    places = {"p_gapo_0.2": (1, 5), "gapo_p1": (3, 3), "p_gapo_0.8": (5, 1), "morlhf_0.2": (0, 4), "morlhf_0.5": (4, 4)}
    runs = [make_run("sft", [[0.5, 0.5]] * 2), make_run("morlhf_0.8", [[6, 0]] * 2)]
    for base, (x, y) in places.items():
        runs += [make_run(base, [[x, y]] * 2, args={"seed": 42}), make_run(f"{base}#43", [[x + 1, y]] * 2)]
    return runs


def test_fronts_are_compared_on_common_weights():
    fronts = find_seeded_fronts(front_runs())
    assert [(front.family, front.condition, front.weights) for front in fronts] == [
        ("p_gapo", "", [0.2, 0.5]),
        ("morlhf", "", [0.2, 0.5]),
    ]
    assert [run.name.text for run in fronts[0].runs("43")] == ["p_gapo_0.2#43", "gapo_p1#43"]
    apart = [make_run(name, [[0, 0]] * 2) for name in ("p_gapo_0.2", "p_gapo_0.8", "morlhf_0.4", "morlhf_0.6")]
    assert [front.weights for front in find_seeded_fronts(apart)] == [[0.2, 0.8], [0.4, 0.6]]
    disjoint = [make_run(name, [[0, 0]] * 2) for name in ("p_gapo_0.2", "p_gapo_0.8", "p_gapo_0.4#43", "p_gapo_0.6#43")]
    assert find_seeded_fronts(disjoint) == []


def test_quality_of_fronts_by_hand():
    """Reference (0, 0), the lowest of all; boxes of P-GAPO 1x5 and 3x3, of MORLHF 0x4 and 4x4, one wider at seed 43."""
    p_gapo, morlhf = front_quality.front_quality(draw_scores(front_runs()))
    assert p_gapo["front"] == "p_gapo" and p_gapo["condition"] == "balanced" and p_gapo["seeds"] == [42, 43]
    assert p_gapo["points"] == 2 and p_gapo["weights"] == [0.2, 0.5] and p_gapo["spacing"] is None
    assert p_gapo["hypervolume"] == {"mean": 13.5, "low": 11.0, "high": 16.0}  # 5 + 2 * 3 and 10 + 2 * 3
    assert morlhf["hypervolume"] == {"mean": 18.0, "low": 16.0, "high": 20.0}
    assert p_gapo["dominated_share"]["mean"] == 0.5  # MORLHF 0.5 dominates GAPO p=1
    assert morlhf["dominated_share"]["mean"] == 0.5  # P-GAPO 0.2 dominates MORLHF 0.2


def test_rivals_share_condition_and_seed():
    runs = front_runs()
    runs += [make_run(name, [[0, 0]] * 2) for name in ("ppo_helpfulness", "ppo_helpfulness#43", "mgda@imbalanced")]
    front = next(front for front in find_fronts(runs) if front.family == "p_gapo" and front.variant == "#43")
    assert {run.name.text for run in find_rivals(runs, front)} == {
        "sft",
        "morlhf_0.2#43",
        "morlhf_0.5#43",
        "ppo_helpfulness#43",
    }


def test_row_hypervolumes_are_means_over_seeds():
    boxes = row_hypervolumes(draw_scores(front_runs()))
    assert boxes["gapo_p1"] == {"mean": 10.5, "low": 9.0, "high": 12.0} and boxes["sft"]["mean"] == 0.25
    assert set(boxes) == {"sft", "gapo_p1", "p_gapo_0.2", "p_gapo_0.8", "morlhf_0.2", "morlhf_0.5", "morlhf_0.8"}
