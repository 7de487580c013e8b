"""How much a text is to hold: words, sentences, paragraphs.

A limit from above shares a family with every kind that asks for a number of something.
"""

from utils.instructions.draws import near
from utils.instructions.kinds import kind
from utils.instructions.texts import count_paragraphs, count_sentences, count_words, longest_sentence

LIMIT = "words sentences paragraphs lists capitals keywords placeholders highlights opening closing"
FEWEST = 5  # words that are asked for
TOLERANCE = 5  # "about" is a fifth more or less


@kind("words", "Use at least {count:word}.", near(count_words, FEWEST))
def at_least_words(text: str, count: int) -> bool:
    return count_words(text) >= count


@kind(LIMIT, "Use at most {count:word}.", near(count_words, FEWEST))
def at_most_words(text: str, count: int) -> bool:
    return count_words(text) <= count


@kind(LIMIT, "Use about {count:word}, at most a fifth more or less.", near(count_words, FEWEST))
def about_words(text: str, count: int) -> bool:
    return TOLERANCE * abs(count_words(text) - count) <= count


@kind("sentences", "Write at least {count:sentence}.", near(count_sentences, 2))
def at_least_sentences(text: str, count: int) -> bool:
    return count_sentences(text) >= count


@kind(LIMIT, "Write at most {count:sentence}.", near(count_sentences))
def at_most_sentences(text: str, count: int) -> bool:
    return count_sentences(text) <= count


@kind("sentence_length", "Write no sentence of more than {count:word}.", near(longest_sentence, FEWEST))
def short_sentences(text: str, count: int) -> bool:
    return longest_sentence(text) <= count


@kind("paragraphs", "Write exactly {count:paragraph} (a blank line ends one).", near(count_paragraphs))
def exactly_paragraphs(text: str, count: int) -> bool:
    return count_paragraphs(text) == count


@kind("paragraphs", "Write at least {count:paragraph} (a blank line ends one).", near(count_paragraphs, 2))
def at_least_paragraphs(text: str, count: int) -> bool:
    return count_paragraphs(text) >= count
