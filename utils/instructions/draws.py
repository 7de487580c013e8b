"""What kinds draw their arguments from: counts near those of the texts, words of theirs."""

import re
from collections.abc import Callable
from random import Random

from utils.instructions.kinds import Arguments, Draw
from utils.instructions.texts import WORD, composed, occurrences, words

FIRST_PERSON = frozenset(("i", "me", "my", "mine", "myself"))
SHORTEST, LONGEST = 4, 30  # letters of a keyword
LONGEST_PHRASE = 60  # characters of opening and closing words
RUN = re.compile(rf"{WORD.pattern}(?:\s+{WORD.pattern})*")  # words with nothing but space between them


def nothing(rng: Random, text: str, other: str) -> Arguments:
    """For kinds without arguments."""
    return {}


def near(measure: Callable[[str], int], least: int = 1) -> Draw:
    """A `count` from half of what `measure` finds in the text to half as much again, and at least `least`."""

    def draw(rng: Random, text: str, other: str) -> Arguments:
        found = measure(text)
        spread = max(2, found // 2)
        return {"count": max(least, rng.randint(found - spread, found + spread))}

    return draw


def keywords(text: str) -> list[str]:
    """Words that are worth asking for, as often as they stand in a text: neither short nor numbers."""
    return [word for word in words(text) if word.isalpha() and SHORTEST <= len(word) <= LONGEST
            and word.casefold() not in FIRST_PERSON]  # fmt: skip


def keyword(rng: Random, text: str, other: str) -> Arguments | None:
    """A `word` of the text or of the other one."""
    known = keywords(rng.choice((text, other))) or keywords(text) or keywords(other)
    return {"word": rng.choice(known).lower()} if known else None


def repeated_keyword(rng: Random, text: str, other: str) -> Arguments | None:
    """A `word` of the text, or else of the other one, and a `count` from 2 to one more than the text has."""
    known = keywords(text) or keywords(other)
    if not known:
        return None
    word = rng.choice(known).lower()
    return {"word": word, "count": rng.randint(2, max(2, occurrences(text, word) + 1))}


def phrase(end: str) -> Draw:
    """The one to three `words` that either text has at its `end`, "first" or "last", with no mark between them."""

    def draw(rng: Random, text: str, other: str) -> Arguments | None:
        runs, number = RUN.findall(composed(rng.choice((text, other)))), rng.randint(1, 3)
        if not runs:
            return None
        found = " ".join(runs[0].split()[:number] if end == "first" else runs[-1].split()[-number:])
        return {"words": found} if len(found) <= LONGEST_PHRASE else None

    return draw
