"""Which words, letters and marks a text is to use, and which not. Words are compared whatever their case."""

from utils.instructions.draws import FIRST_PERSON, keyword, near, nothing, phrase, repeated_keyword
from utils.instructions.kinds import kind
from utils.instructions.texts import count_capitals, folded, occurrences


@kind("keywords", 'Use the word "{word}".', keyword)
def contains_word(text: str, word: str) -> bool:
    return occurrences(text, word) > 0


@kind("keywords", 'Use the word "{word}" at least {count:time}.', repeated_keyword)
def repeats_word(text: str, word: str, count: int) -> bool:
    return occurrences(text, word) >= count


@kind("keywords opening closing", 'Do not use the word "{word}".', keyword)
def lacks_word(text: str, word: str) -> bool:
    return occurrences(text, word) == 0


@kind("opening", 'Begin the answer with "{words}".', phrase("first"))
def opens_with(text: str, words: str) -> bool:
    wanted = folded(words)
    return folded(text)[: len(wanted)] == wanted


@kind("closing", 'End the answer with "{words}".', phrase("last"))
def closes_with(text: str, words: str) -> bool:
    wanted = folded(words)
    return folded(text)[-len(wanted) :] == wanted


@kind("opening closing first_person", "Do not use I, me, my, mine or myself, nor forms such as I'm.", nothing)
def no_first_person(text: str) -> bool:
    return not any(part in FIRST_PERSON for word in folded(text) for part in word.replace("-", "'").split("'"))


@kind("case", "Write in lower case alone.", nothing)
def lower_case(text: str) -> bool:
    return text.islower()


@kind("case", "Write in capital letters alone.", nothing)
def upper_case(text: str) -> bool:
    return text.isupper()


@kind("case capitals", "Write at least {count:word} of two or more letters in capitals alone.", near(count_capitals))
def capital_words(text: str, count: int) -> bool:
    return count_capitals(text) >= count


@kind("digits opening closing", "Do not use any digit.", nothing)
def no_digits(text: str) -> bool:
    return not any(character.isdecimal() for character in text)


@kind("digits", "Use at least one digit.", nothing)
def contains_digit(text: str) -> bool:
    return any(character.isdecimal() for character in text)


@kind("commas", "Do not use any comma.", nothing)
def no_commas(text: str) -> bool:
    return not any(mark in text for mark in ",，")


@kind("exclamation", "Do not use any exclamation mark.", nothing)
def no_exclamation_marks(text: str) -> bool:
    return not any(mark in text for mark in "!！")


@kind("exclamation", "Use at least one exclamation mark.", nothing)
def contains_exclamation_mark(text: str) -> bool:
    return any(mark in text for mark in "!！")


@kind("question", "Do not use any question mark.", nothing)
def no_question_marks(text: str) -> bool:
    return not any(mark in text for mark in "?？")


@kind("question", "End the answer with a question mark.", nothing)
def ends_with_question(text: str) -> bool:
    return text.rstrip().rstrip("\"'”’)]*_").endswith(("?", "？"))
