"""Ratings and overall preferences for SafeRLHF-mini: what reward models with several attributes are judged on.

Raters are noisy, leave ratings out, and take long answers for good ones: what they give for length alone is in the
ratings and in no gold score. The overall preference has no such bias, and depends on the prompt (see `attributes`).
"""

import random

from utils.safe_rlhf_mini.attributes import attributes_of, kind_of, overall_of
from utils.safe_rlhf_mini.generate import (
    CORRUPTED_SHARE,
    PREFERENCE_STYLES,
    BenchmarkPrompt,
    compose,
    corrupt,
    draw,
    draw_style,
    vocabulary,
)
from utils.safe_rlhf_mini.gold import sentences_of
from utils.safe_rlhf_mini.templates import FILLERS, HEDGES

LOWEST, HIGHEST = 0, 4  # of a rating, in steps of 1
# rating = origin + slope · gold + bias · (words − 25) / 25 + noise, the last two of them the raters'.
SCALES = {
    "helpfulness": (2.0, 0.8, 0.8),
    "harmlessness": (2.2, 1.1, 0.3),
    "conciseness": (3.0, 1.0, 0.0),
    "clarity": (2.4, 1.2, 0.6),
    "verbosity": (0.2, 1.2, 0.0),
}
USUAL_WORDS, MOST_BIAS = 25, 1.5  # bias counts up to so many times
NOISE = 0.5
MISSING = 0.15
PADDED_SHARE = 0.25  # of answers that say what they say at length
OVERALL_SHARPNESS = 1.5  # chosen ~ sigmoid(1.5 * difference of overall quality)
RESPONSES = 4  # to a prompt


def padded(rng: random.Random, text: str) -> str:
    """A text made longer by two to six sentences that add nothing to it: fillers, a hedge, what it has said before."""
    said = [sentence + "." for sentence in text.rstrip(".").split(". ")]
    more = [rng.choice((*FILLERS, *FILLERS, *HEDGES, *said)) for _ in range(rng.randint(2, 6))]
    for sentence in more:
        said.insert(rng.randint(0, len(said)), sentence)
    return " ".join(said)


def response_to(rng: random.Random, prompt: BenchmarkPrompt, words: list[str]) -> str:
    """A response in some style, some of them padded, some corrupted."""
    text = compose(rng, prompt.task, draw_style(rng, PREFERENCE_STYLES[prompt.risky]))
    if rng.random() < PADDED_SHARE:
        text = padded(rng, text)
    return corrupt(rng, text, words) if rng.random() < CORRUPTED_SHARE else text


def rate(rng: random.Random, prompt: str, response: str) -> dict[str, int | None]:
    """What one rater gives a response, {attribute: 0 to 4, or None}."""
    excess = (len(response.split()) - USUAL_WORDS) / USUAL_WORDS
    excess = max(-MOST_BIAS, min(MOST_BIAS, excess))
    ratings: dict[str, int | None] = {}
    for name, gold in attributes_of(prompt, response).items():
        origin, slope, bias = SCALES[name]
        rating = round(origin + slope * gold + bias * excess + rng.gauss(0.0, NOISE))
        ratings[name] = None if rng.random() < MISSING else max(LOWEST, min(HIGHEST, rating))
    return ratings


def rating_rows(rng: random.Random, prompts: list[BenchmarkPrompt], count: int) -> list[dict[str, object]]:
    """`count` rows {"prompt", "response", "scores"}, the responses to a prompt one after another."""
    words, rows = vocabulary(), []
    while len(rows) < count:
        prompt = rng.choice(prompts)
        for _ in range(RESPONSES):
            response = response_to(rng, prompt, words)
            scores = rate(rng, prompt.text, response)
            rows.append({"prompt": prompt.text, "response": response, "scores": scores})
    return rows[:count]


def overall_rows(rng: random.Random, prompts: list[BenchmarkPrompt], count: int) -> list[dict[str, object]]:
    """`count` rows {"prompt", "chosen", "rejected", "subset"}; the subset is the kind of prompt. All kinds alike."""
    by_kind: dict[str, list[BenchmarkPrompt]] = {}
    for prompt in prompts:
        by_kind.setdefault(kind_of(prompt.text), []).append(prompt)
    words, rows = vocabulary(), []
    while len(rows) < count:
        kind = sorted(by_kind)[len(rows) % len(by_kind)]
        prompt = rng.choice(by_kind[kind])
        pair = [response_to(rng, prompt, words) for _ in range(2)]
        if list(sentences_of(pair[0])) == list(sentences_of(pair[1])):
            continue
        first, second = (overall_of(prompt.text, attributes_of(prompt.text, text)) for text in pair)
        if not draw(rng, OVERALL_SHARPNESS * (first - second)):
            pair.reverse()
        rows.append({"prompt": prompt.text, "chosen": pair[0], "rejected": pair[1], "subset": kind})
    return rows


def more_files(
    seed: int, splits: dict[str, list[BenchmarkPrompt]], num_train: int, num_held_out: int
) -> dict[str, list[dict[str, object]]]:
    """{file stem: rows} of ratings and overall preferences on the prompts of every split; streams of their own."""
    files = {}
    for split, prompts in splits.items():
        count = num_train if split == "train" else num_held_out
        files[f"ratings_{split}"] = rating_rows(random.Random(f"{seed} ratings {split}"), prompts, count)
        files[f"overall_{split}"] = overall_rows(random.Random(f"{seed} overall {split}"), prompts, count)
    return files
