"""Objectives that are functions: two examples for `--reward_function NAME=examples.reward_functions:FUNCTION`.

A function gets the last user turns and the responses, and returns one number a response, higher is better. None in
place of a number says that it does not judge the response, which then counts for nothing here; NaN is an error. Values
should be graded: where all responses of a prompt are worth the same, there is nothing to learn from.
"""

import re

CONCISE_WORDS = 30  # a response of so many words is worth half of an empty one
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
FULL_STOP = re.compile(r"[.!?][\"')\]]*$")
LONGEST_SENTENCE = 25  # words


def conciseness(prompts: list[str], responses: list[str]) -> list[float]:
    """How short a response is, in (0, 1]: 1 / (1 + words / 30), and 0 for a response without words.

    Falls with every further word, by less and less: between two long responses there is little to choose. Saying
    nothing is no way to be concise.
    """
    counts = [len(response.split()) for response in responses]
    return [1 / (1 + count / CONCISE_WORDS) if count else 0.0 for count in counts]


def format(prompts: list[str], responses: list[str]) -> list[float]:
    """How well a response is formed, in [0, 1]: mean `sentence_form` × share of sentences not said before.

    0 for a response without a sentence.
    """
    return [text_form(sentences_of(response)) for response in responses]


def text_form(sentences: list[str]) -> float:
    """`format` of one response."""
    distinct = len({sentence.lower() for sentence in sentences})
    return mean([sentence_form(sentence) for sentence in sentences]) * distinct / max(1, len(sentences))


def sentences_of(text: str) -> list[str]:
    """The sentences of a text; a line break ends one, too."""
    return [sentence.strip() for sentence in SENTENCE.findall(text) if sentence.strip()]


def sentence_form(sentence: str) -> float:
    """Share of the wanted properties: begins with a capital or a digit, ends with a full stop, is not too long."""
    begins = sentence[0].isupper() or sentence[0].isdigit()
    return mean([begins, bool(FULL_STOP.search(sentence)), len(sentence.split()) <= LONGEST_SENTENCE])


def mean(values: list[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
