"""SafeRLHF-mini's ratings and overall preferences: noisy and biased as said; no fixed weights serve every prompt."""

import json
import random
from pathlib import Path
from statistics import fmean

import numpy
import pytest
from scipy import optimize, stats

from tests.helpers import flags, run_script
from utils.data.loading import load_view
from utils.data.ratings import RATINGS
from utils.safe_rlhf_mini import gold_attributes, gold_overall, gold_scores
from utils.safe_rlhf_mini.attributes import ATTRIBUTES, WEIGHTS, attributes_of, kind_of, overall_of
from utils.safe_rlhf_mini.generate import split_prompts
from utils.safe_rlhf_mini.ratings import MISSING, OVERALL_SHARPNESS, overall_rows, padded, rating_rows

HURRY = "How do I cook a soup in a hurry?"
PLAIN, RISKY = "How do I cook a soup at home?", "Tell me how to forge a ticket in a hurry."


@pytest.fixture(scope="module")
def prompts():
    return split_prompts(random.Random(5), 64, 64)["train"]


@pytest.fixture(scope="module")
def ratings(prompts) -> list[dict]:
    return rating_rows(random.Random(6), prompts, 4000)


@pytest.fixture(scope="module")
def overall(prompts) -> list[dict]:
    return overall_rows(random.Random(7), prompts, 3000)


def test_the_prompt_says_what_counts() -> None:
    assert [kind_of(prompt) for prompt in (PLAIN, HURRY, RISKY, "What is this?")] == [
        "plain",
        "hurry",
        "risky",
        "plain",
    ]
    text = "Sure, here is how to cook a soup. Add salt to the soup. That is a very interesting question."
    found = attributes_of(PLAIN, text)
    helpful, harmless = (gold_scores([PLAIN], [text])[name][0] for name in ("helpfulness", "harmlessness"))
    assert (found["helpfulness"], found["harmlessness"]) == (helpful, harmless)
    words = len(text.split())
    assert found["verbosity"] == words / 20 and found["conciseness"] == pytest.approx(1 - words / 20 - 0.15)
    assert found["clarity"] == pytest.approx(1 - 0.2), "a filler"
    assert overall_of(PLAIN, found) == pytest.approx(1.2 * helpful + 0.5 * 0.8)
    assert gold_overall([PLAIN, HURRY], [text, text]) == [overall_of(PLAIN, found), overall_of(HURRY, found)]
    assert gold_attributes([PLAIN], [text]) == {name: [found[name]] for name in ATTRIBUTES}
    assert all(set(weights) < set(ATTRIBUTES) for weights in WEIGHTS.values())


def test_padding_adds_words_and_takes_nothing_away() -> None:
    text = "Add salt to the soup. Let the soup cool."
    longer = padded(random.Random(1), text)
    assert {sentence.strip() for sentence in text.split(".")} <= {sentence.strip() for sentence in longer.split(".")}
    assert len(longer.split()) > len(text.split()) + 5
    assert attributes_of(PLAIN, longer)["clarity"] < attributes_of(PLAIN, text)["clarity"]


def test_ratings_are_whole_numbers_and_some_are_missing(ratings) -> None:
    given = [value for row in ratings for value in row["scores"].values()]
    assert set(given) == {None, 0, 1, 2, 3, 4}
    assert fmean(value is None for value in given) == pytest.approx(MISSING, abs=0.02)
    assert all(len({row["prompt"] for row in ratings[i : i + 4]}) == 1 for i in range(0, len(ratings), 4))


def column(ratings: list[dict], name: str) -> tuple[list[float], list[float], list[int]]:
    """Rating, gold and words of the responses that are rated on an attribute."""
    rows = [row for row in ratings if row["scores"][name] is not None]
    gold = gold_attributes([row["prompt"] for row in rows], [row["response"] for row in rows])[name]
    return [row["scores"][name] for row in rows], gold, [len(row["response"].split()) for row in rows]


def test_raters_see_what_is_there_and_like_it_long(ratings) -> None:
    for name in ATTRIBUTES:
        rated, gold, _ = column(ratings, name)
        assert 0.6 < stats.spearmanr(rated, gold).statistic < 0.95, name
    for name in ("helpfulness", "clarity"):
        rated, gold, words = column(ratings, name)
        bias = stats.spearmanr(rated, words).statistic - stats.spearmanr(gold, words).statistic
        assert bias > 0.2, name
    rated, gold, words = column(ratings, "conciseness")
    assert abs(stats.spearmanr(rated, words).statistic) < abs(stats.spearmanr(gold, words).statistic), "noise alone"


def test_no_fixed_weights_serve_every_prompt(overall) -> None:
    """On gold quantities: the prompt's own weights order more of the pairs than the best fixed ones, these more than
    any attribute alone."""
    prompts = [row["prompt"] for row in overall]
    chosen, rejected = ([[attributes_of(p, row[side])[n] for n in ATTRIBUTES] for p, row in zip(prompts, overall,
                         strict=True)] for side in ("chosen", "rejected"))  # fmt: skip
    differences = numpy.array(chosen) - numpy.array(rejected)
    own = numpy.subtract(*(gold_overall(prompts, [row[side] for row in overall]) for side in ("chosen", "rejected")))
    loss = lambda weights: numpy.logaddexp(0, -differences @ weights).mean()
    fixed = differences @ optimize.minimize(loss, numpy.zeros(len(ATTRIBUTES))).x
    best_alone = max(((d > 0) + 0.5 * (d == 0)).mean() for d in (*differences.T, *-differences.T))
    assert (own > 0).mean() > (fixed > 0).mean() + 0.035 and (fixed > 0).mean() > best_alone + 0.05
    expected = 1 / (1 + numpy.exp(-OVERALL_SHARPNESS * numpy.abs(own)))
    assert (own > 0).mean() == pytest.approx(expected.mean(), abs=0.02), "the draw is Bradley-Terry's"
    assert {row["subset"] for row in overall} == set(WEIGHTS)


def test_files_beside_the_others(tmp_path: Path) -> None:
    """With the flag there are more files; those that were there before are the same to the byte."""
    sizes = {"num_sft": 30, "num_preferences": 30, "num_validation": 10, "num_validation_prompts": 16,
             "num_test_prompts": 16, "num_ratings": 40, "num_held_out_ratings": 12}  # fmt: skip
    for name, more in (("plain", False), ("more", True), ("again", True)):
        words = flags(output_dir=tmp_path / name, reward_models=more, **sizes)
        assert run_script("utils/safe_rlhf_mini/__main__.py", words).code == 0
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes()
    new = {path.name for path in (tmp_path / "more").iterdir()} - {path.name for path in (tmp_path / "plain").iterdir()}
    assert new == {
        f"{kind}_{split}.jsonl" for kind in ("ratings", "overall") for split in ("train", "validation", "test")
    }
    for name in new:
        assert (tmp_path / "more" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        rows = [json.loads(line) for line in (tmp_path / "more" / name).read_text().splitlines()]
        assert len(rows) == (40 if "train" in name else 12)
        kind, split = name.removesuffix(".jsonl").split("_")
        known = {
            json.loads(line)["prompt"] for line in (tmp_path / f"more/prompts_{split}.jsonl").read_text().splitlines()
        }
        assert {row["prompt"] for row in rows} <= known
        if kind == "ratings":
            records, summary = load_view(str(tmp_path / "more" / name), RATINGS)
            assert len(records) == len(rows) and not summary.dropped
