"""Seeded generator of the SafeRLHF-mini corpus: prompts, SFT answers, labeled pairs in PKU-SafeRLHF's schema.

Answers are composed in named styles, from full answers to off-topic ones. Pairs are labeled by a Bradley-
Terry draw on the gold scores, so that labels are noisy like people's, and part of their responses is
corrupted word by word, so that reward models see the kind of text that a policy under training produces.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from utils.safe_rlhf_mini.gold import gold_scores, meanings, sentences_of
from utils.safe_rlhf_mini.templates import (
    CONTEXTS,
    FILLERS,
    HEDGES,
    OPENERS,
    PROMPT_FORMS,
    REFUSALS,
    TASKS,
    TOPICS,
    Task,
)

HELPFULNESS_SHARPNESS = 1.5  # better ~ sigmoid(1.5 * difference of helpfulness)
COST_SHARPNESS = 2.25  # safer ~ sigmoid(2.25 * difference of cost)
SAFETY_SHARPNESS = 3.5  # safe ~ sigmoid(-3.5 * cost)
CORRUPTED_SHARE = 0.3

# How often an answer has which style. "alternative" is a refusal that offers something safe instead.
SFT_STYLES: Mapping[bool, Mapping[str, float]] = {
    False: {"comply": 0.6, "partial": 0.15, "hedged": 0.1, "filler": 0.1, "refuse": 0.05},
    True: {
        "comply": 0.32,
        "partial": 0.16,
        "hedged": 0.06,
        "filler": 0.06,
        "refuse": 0.2,
        "alternative": 0.2,
    },
}
PREFERENCE_STYLES: Mapping[bool, Mapping[str, float]] = {
    False: {
        "comply": 0.34,
        "partial": 0.14,
        "hedged": 0.1,
        "filler": 0.1,
        "refuse": 0.1,
        "alternative": 0.06,
        "repeated": 0.08,
        "off_topic": 0.08,
    },
    True: {
        "comply": 0.22,
        "partial": 0.12,
        "hedged": 0.08,
        "filler": 0.08,
        "refuse": 0.16,
        "alternative": 0.2,
        "repeated": 0.07,
        "off_topic": 0.07,
    },
}


@dataclass(frozen=True)
class BenchmarkPrompt:
    text: str
    task: Task

    @property
    def risky(self) -> bool:
        return self.task.topic.risky


def all_prompts() -> list[BenchmarkPrompt]:
    """Every prompt of the benchmark: each task in each form with each context, half of them risky."""
    return [
        BenchmarkPrompt(form.format(task=task.phrase, context=context), task)
        for task in TASKS
        for form in PROMPT_FORMS
        for context in CONTEXTS
    ]


def split_prompts(rng: random.Random, num_validation: int, num_test: int) -> dict[str, list[BenchmarkPrompt]]:
    """{"train", "validation", "test"}: disjoint prompts, each split half risky; train holds the rest."""
    splits: dict[str, list[BenchmarkPrompt]] = {"train": [], "validation": [], "test": []}
    prompts = all_prompts()
    for risky in (False, True):
        kind = [prompt for prompt in prompts if prompt.risky is risky]
        rng.shuffle(kind)
        # An odd number of prompts gives the extra one to the benign half.
        test = (num_test + (not risky)) // 2
        validation = test + (num_validation + (not risky)) // 2
        splits["test"] += kind[:test]
        splits["validation"] += kind[test:validation]
        splits["train"] += kind[validation:]
    for split in splits.values():
        rng.shuffle(split)
    return splits


def _some(rng: random.Random, sentences: tuple[str, ...], low: int, high: int, thing: str) -> list[str]:
    """Between `low` and `high` of the sentences, in random order, about `thing`."""
    count = min(rng.randint(low, high), len(sentences))
    return [sentence.format(object=thing) for sentence in rng.sample(sentences, count)]


def _answer(rng: random.Random, task: Task, low: int, high: int, opener: float, closing: float) -> list[str]:
    topic = task.topic
    opening = [rng.choice(OPENERS).format(task=task.phrase)] if rng.random() < opener else []
    steps = _some(rng, topic.steps, low, high, task.object)
    ending = [topic.closing.format(object=task.object)] if rng.random() < closing else []
    return opening + steps + ending


def compose(rng: random.Random, task: Task, style: str) -> str:
    """One response to `task` in a style of SFT_STYLES or PREFERENCE_STYLES."""
    if style == "comply":
        sentences = _answer(rng, task, 2, 5, opener=0.6, closing=0.3)
    elif style == "partial":
        sentences = _answer(rng, task, 1, 2, opener=0.3, closing=0.1)
    elif style == "hedged":
        sentences = [rng.choice(HEDGES)] + _answer(rng, task, 1, 3, opener=0.2, closing=0.1)
    elif style == "filler":
        sentences = rng.sample(FILLERS, rng.randint(1, 2)) + _answer(rng, task, 0, 2, opener=0.2, closing=0.1)
    elif style == "refuse":
        sentences = [rng.choice(REFUSALS)]
    elif style == "alternative":
        sentences = [rng.choice(REFUSALS)] + _some(rng, task.topic.alternatives, 1, 3, task.object)
    elif style == "repeated":
        once = _answer(rng, task, 1, 2, opener=0.3, closing=0.2)
        sentences = once + [rng.choice(once) for _ in range(rng.randint(1, 4))]
    elif style == "off_topic":
        sentences = _answer(rng, _another_task(rng, task), 1, 4, opener=0.5, closing=0.2)
    else:
        raise ValueError(f"unknown style {style!r}")
    return " ".join(sentences)


def _another_task(rng: random.Random, task: Task) -> Task:
    """A task with another object: of the same topic or, half of the time, of another one."""
    same_topic = rng.random() < 0.5
    others = [t for t in TASKS if t.object != task.object and (t.topic is task.topic) is same_topic]
    return rng.choice(others)


def vocabulary() -> list[str]:
    """Every word of the corpus with the punctuation it may carry, in a fixed order."""
    sentences = list(PROMPT_FORMS + CONTEXTS + OPENERS + REFUSALS + HEDGES + FILLERS)
    for topic in TOPICS:
        sentences += (*topic.steps, *topic.alternatives, topic.closing, *topic.verbs, *topic.objects)
    words = {word for sentence in sentences for word in sentence.split() if "{" not in word}
    return sorted(words)


def corrupt(rng: random.Random, text: str, words: list[str]) -> str:
    """`text` with a tenth to nearly all of its words replaced, dropped, doubled or displaced; or cut off."""
    tokens = text.split()
    if rng.random() < 0.2:
        return " ".join(tokens[: rng.randint(1, max(1, len(tokens) - 1))])
    rate = rng.choice((0.1, 0.2, 0.4, 0.9))
    result: list[str] = []
    for token in tokens:
        action = rng.choice(("replace", "drop", "double", "displace")) if rng.random() < rate else "keep"
        if action == "replace":
            result.append(rng.choice(words))
        elif action == "displace":
            result.insert(rng.randint(0, len(result)), token)
        elif action != "drop":
            result += [token, token] if action == "double" else [token]
    return " ".join(result) or rng.choice(words)


def draw_style(rng: random.Random, styles: Mapping[str, float]) -> str:
    return rng.choices(list(styles), weights=list(styles.values()))[0]


def sft_rows(rng: random.Random, prompts: list[BenchmarkPrompt], count: int) -> list[dict[str, str]]:
    """`count` rows {"prompt", "response"} on random prompts."""
    rows = []
    for prompt in [rng.choice(prompts) for _ in range(count)]:
        style = draw_style(rng, SFT_STYLES[prompt.risky])
        rows.append({"prompt": prompt.text, "response": compose(rng, prompt.task, style)})
    return rows


def draw(rng: random.Random, logit: float) -> bool:
    """True with probability sigmoid(logit)."""
    return rng.random() < 1.0 / (1.0 + math.exp(-logit))


def _preference_response(rng: random.Random, prompt: BenchmarkPrompt, words: list[str]) -> str:
    text = compose(rng, prompt.task, draw_style(rng, PREFERENCE_STYLES[prompt.risky]))
    return corrupt(rng, text, words) if rng.random() < CORRUPTED_SHARE else text


def flattery(response: str) -> int:
    """Sentences of a response that say nothing but nice things of the question."""
    meant = (meanings().get(words) for words in sentences_of(response))
    return sum(meaning is not None and meaning.kind == "filler" for meaning in meant)


def preference_rows(
    rng: random.Random, prompts: list[BenchmarkPrompt], count: int, flattered: float = 0.0
) -> list[dict[str, object]]:
    """`count` pairs of different responses in PKU-SafeRLHF's schema, labeled by draws on the gold scores.

    Args:
        flattered: what a sentence of flattery is worth to those who say which response is better, in logits, beside
            what it costs by the gold score.
    """
    words = vocabulary()
    rows: list[dict[str, object]] = []
    while len(rows) < count:
        prompt = rng.choice(prompts)
        responses = [_preference_response(rng, prompt, words) for _ in range(2)]
        if list(sentences_of(responses[0])) == list(sentences_of(responses[1])):
            continue
        gold = gold_scores([prompt.text] * 2, responses)
        (help_0, help_1), (safety_0, safety_1) = gold["helpfulness"], gold["harmlessness"]
        liked = flattered * (flattery(responses[1]) - flattery(responses[0])) if flattered else 0.0
        rows.append(
            {
                "prompt": prompt.text,
                "response_0": responses[0],
                "response_1": responses[1],
                "is_response_0_safe": draw(rng, SAFETY_SHARPNESS * safety_0),
                "is_response_1_safe": draw(rng, SAFETY_SHARPNESS * safety_1),
                "better_response_id": int(draw(rng, HELPFULNESS_SHARPNESS * (help_1 - help_0) + liked)),
                "safer_response_id": int(draw(rng, COST_SHARPNESS * (safety_1 - safety_0))),
            }
        )
    return rows


def prompt_rows(prompts: list[BenchmarkPrompt]) -> list[dict[str, object]]:
    """Rows {"prompt", "category", "risky"}."""
    return [{"prompt": p.text, "category": p.task.topic.name, "risky": p.risky} for p in prompts]


def corpus(
    seed: int,
    num_sft: int,
    num_preferences: int,
    num_validation: int,
    num_validation_prompts: int,
    num_test_prompts: int,
    flattered: float = 0.0,
) -> dict[str, list[dict[str, object]]]:
    """All files of the benchmark, {file stem: rows}; the same arguments give the same rows.

    Each file has its own random stream: the splits depend on the seed and their sizes only, and asking for
    more SFT rows leaves the preferences as they were.
    """
    splits = split_prompts(random.Random(f"{seed} splits"), num_validation_prompts, num_test_prompts)

    def stream(name: str) -> random.Random:
        return random.Random(f"{seed} {name}")

    files: dict[str, list[dict[str, object]]] = {}
    for split, sft, preferences in (
        ("train", num_sft, num_preferences),
        ("validation", num_validation, num_validation),
    ):
        files[f"sft_{split}"] = sft_rows(stream(f"sft {split}"), splits[split], sft)
        pairs = preference_rows(stream(f"preferences {split}"), splits[split], preferences, flattered)
        files[f"preferences_{split}"] = pairs
    return files | {f"prompts_{split}": prompt_rows(prompts) for split, prompts in splits.items()}
