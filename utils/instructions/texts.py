"""What checks measure of a text: words, sentences, paragraphs, lines. Any text will do, the empty one too.

A word is a run of letters and digits, with apostrophes and hyphens inside it: "don't" and "well-known" are one. A
sentence ends at a full stop, question or exclamation mark before a space (in Chinese and Japanese before anything), and
at the end of a line: an item of a list is one, and "Dr. Who" are two.
"""

import functools
import re
import unicodedata

# Vowel signs and accents of their own, which `re` does not count as parts of words; composed letters hold the others.
MARKS = "".join(chr(code) for code in range(0x300, 0x1D00) if unicodedata.category(chr(code)).startswith("M"))
WORD = re.compile(rf"(?:[^\W_]|[{MARKS}])+(?:['’-](?:[^\W_]|[{MARKS}])+)*")
ITEM = re.compile(r"^[ \t]*(?:[-*•]|(\d{1,4})[.)])[ \t]+(?=\S)")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]*_]*\s+|(?<=[。！？])")
PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")
CACHED = 16  # texts: those that several instructions are checked on, one after another


def composed(text: str) -> str:
    """With every accent in its letter, where there is such a letter."""
    return unicodedata.normalize("NFC", text)


@functools.lru_cache(CACHED)
def words(text: str) -> tuple[str, ...]:
    """The words, as they are written."""
    return tuple(WORD.findall(composed(text)))


@functools.lru_cache(CACHED)
def folded(text: str) -> tuple[str, ...]:
    """The words as they are compared: case and kind of apostrophe evened out."""
    return tuple(word.casefold().replace("’", "'") for word in words(text))


def count_words(text: str) -> int:
    return len(words(text))


def occurrences(text: str, phrase: str) -> int:
    """How many times the words of `phrase` stand in a text, one after another."""
    found, wanted = folded(text), folded(phrase)
    if len(wanted) == 1:
        return found.count(wanted[0])
    return sum(found[start : start + len(wanted)] == wanted for start in range(len(found) - len(wanted) + 1))


@functools.lru_cache(CACHED)
def sentence_lengths(text: str) -> tuple[int, ...]:
    """Words of each sentence."""
    lines = (ITEM.sub("", line, count=1) for line in text.splitlines())
    lengths = (len(WORD.findall(part)) for line in lines for part in SENTENCE_END.split(line))
    return tuple(length for length in lengths if length)


def count_sentences(text: str) -> int:
    return len(sentence_lengths(text))


def longest_sentence(text: str) -> int:
    """Words of the longest one; 0 where there is none."""
    return max(sentence_lengths(text), default=0)


def count_paragraphs(text: str) -> int:
    """Blocks of text with blank lines between them."""
    return sum(bool(block.strip()) for block in PARAGRAPH_END.split("\n".join(text.splitlines())))


def count_bullets(text: str) -> int:
    """Lines that begin with "- " or "* "."""
    return sum(bool(re.match(r"[ \t]*[-*][ \t]+\S", line)) for line in text.splitlines())


def item_numbers(text: str) -> list[int]:
    """The numbers of lines that begin as "1. " or "1) "."""
    found = (ITEM.match(line) for line in text.splitlines())
    return [int(match[1]) for match in found if match and match[1]]


def count_numbered(text: str) -> int:
    """Items of a list that counts from 1, in order; other numbered lines are passed over."""
    count = 0
    for number in item_numbers(text):
        count += number == count + 1
    return count


def count_capitals(text: str) -> int:
    """Words of two letters or more in capitals alone."""
    return sum(len(word) > 1 and word.isupper() for word in words(text))


def count_placeholders(text: str) -> int:
    """Parts in [square brackets] that are no link of markdown."""
    return len(re.findall(r"\[[^\[\]\n]+\](?!\()", text))


def count_highlights(text: str) -> int:
    """Parts in *asterisks*, one or two on each side."""
    return len(re.findall(r"\*(?=[^\s*])[^*\n]+(?<=\S)\*", text))
