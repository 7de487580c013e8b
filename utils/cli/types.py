"""argparse types: one word of the command line to a value, or what is wrong with it."""

import argparse
import math
import unicodedata
from collections.abc import Callable
from typing import Any

from utils.process.errors import UserError

LARGEST_INT = 2**31 - 1  # what the libraries below take for a size
LARGEST_SEED = 2**32 - 1  # the most that every generator takes
LOWEST_TEMPERATURE = 1e-4  # logits over a lower one are infinite
LONGEST_WAIT = 365 * 86400.0  # seconds
LONGEST_NAME = 100  # bytes; two of them and what is added fit into the 255 that file systems allow


def safe_name(text: str) -> str:
    """argparse type of the name of a run, an objective or an input: files and curves are called by it."""
    if not text.strip() or "/" in text or "\\" in text or text.startswith((".", "-")):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a name: files are called by it")
    if any(unicodedata.category(character).startswith("C") for character in text):
        raise argparse.ArgumentTypeError(f"{ascii(text)} cannot be a name: it holds invisible characters")
    if len(text.encode()) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{text[:20]!r}...: a name has at most {LONGEST_NAME} bytes")
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """argparse type of one of these words."""

    def choice(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return choice


def named_value(text: str) -> tuple[str, str]:
    """argparse type of `NAME=VALUE`; see `safe_name`."""
    name, separator, value = text.partition("=")
    if not (separator and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return safe_name(name), value


def named_number(text: str) -> tuple[str, float]:
    """argparse type of `NAME=NUMBER`."""
    name, value = named_value(text)
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER") from None


def named_condition(text: str) -> tuple[str, str]:
    """argparse type of `NAME=OTHER:NUMBER`: the name, and 'OTHER:NUMBER' (see `condition`)."""
    name, value = named_value(text)
    try:
        finite = math.isfinite(condition(value)[1])
    except ValueError:
        finite = False
    if not finite:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=OTHER:NUMBER")
    return name, value


def condition(text: str) -> tuple[str, float]:
    """The two parts of 'OTHER:NUMBER'; raises ValueError where it is none."""
    other, separator, number = text.rpartition(":")
    if not separator:
        raise ValueError(f"{text!r} is not OTHER:NUMBER")
    return safe_name(other), float(number)


def by_name(flag: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """NAME=VALUE arguments as a dictionary; raises UserError for a name given twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UserError(f"{flag}: a name is given twice ({', '.join(name for name, _ in pairs)})")
    return values


def positive_int(text: str) -> int:
    """argparse type of an integer >= 1."""
    return bounded_int(text, 1, LARGEST_INT)


def non_negative_int(text: str) -> int:
    """argparse type of an integer >= 0."""
    return bounded_int(text, 0, LARGEST_INT)


def seed(text: str) -> int:
    """argparse type of what every random generator can be seeded with."""
    return bounded_int(text, 0, LARGEST_SEED)


def bounded_int(text: str, least: int, most: int) -> int:
    """The integer that a word of the command line stands for, if it is within bounds."""
    value = int(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
    return value


def positive_float(text: str) -> float:
    """argparse type of a finite number > 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def non_negative_float(text: str) -> float:
    """argparse type of a finite number >= 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is negative or not finite")
    return value


def temperature(text: str) -> float:
    """argparse type of a sampling temperature."""
    value = positive_float(text)
    if value < LOWEST_TEMPERATURE:
        raise argparse.ArgumentTypeError(f"{text} is below {LOWEST_TEMPERATURE:g}")
    return value


def degrees(text: str) -> float:
    """argparse type of an angle from -180 to 180."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -180 <= value <= 180:
        raise argparse.ArgumentTypeError(f"{text!r} is not an angle from -180 to 180 degrees")
    return value


def seconds(text: str) -> float:
    """argparse type of a time to wait, 0 included."""
    value = non_negative_float(text)
    if value > LONGEST_WAIT:
        raise argparse.ArgumentTypeError(f"{text} is more than a year ({LONGEST_WAIT:.0f} s)")
    return value


def positive_seconds(text: str) -> float:
    """argparse type of a time to wait."""
    positive_float(text)
    return seconds(text)


def fraction(text: str) -> float:
    """argparse type of a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive_fraction(text: str) -> float:
    """argparse type of a number in (0, 1]."""
    if fraction(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def adam_beta(text: str) -> float:
    """argparse type of a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return value
