"""Whether JSON has the shape that a reader counts on; of what has not, the first place that differs, in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = 2**63  # of whole numbers: more than any reader can turn into an array


@dataclass(frozen=True)
class Leaf:
    """A value without parts; `what` it has to be, and whether it is."""

    what: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object with any keys, whose values all have one shape."""

    shape: "Shape"


@dataclass(frozen=True)
class Maybe:
    """A value that may be null, or a key that may be missing."""

    shape: "Shape"


Shape = Leaf | Each | Maybe | dict[str, "Shape"] | list["Shape"]  # {key: shape}, others are ignored; [shape of all]


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be computed with; it may be infinite or not a number at all."""
    return isinstance(value, float) or (type(value) is int and abs(value) < LARGEST)


def is_number_word(text: str) -> bool:
    """Whether it is how a number is written."""
    try:
        float(text)
    except ValueError:
        return False
    return True


ANY = Leaf("anything", lambda value: True)
TEXT = Leaf("text", lambda value: isinstance(value, str))
WHOLE = Leaf("a whole number", lambda value: is_number(value) and isinstance(value, int))
NUMBER = Leaf("a number", lambda value: is_number(value) and math.isfinite(value))
OBJECT = Each(ANY)
SCALES = Leaf(
    "pairs of a name and a number",
    lambda value: (
        isinstance(value, list)
        and all(
            isinstance(item, list) and len(item) == 2 and TEXT.holds(item[0]) and is_number(item[1]) for item in value
        )
    ),
)


def find_difference(value: Any, shape: Shape, place: str = "") -> str | None:
    """Where and how `value` differs from `shape`, such as "'rows' 3 'prompt' is not text"; None if it does not."""
    match shape:
        case Maybe(inner):
            return None if value is None else find_difference(value, inner, place)
        case Leaf(what, holds):
            return None if holds(value) else f"{place} is not {what}".strip()
        case [inner]:
            if not isinstance(value, list):
                return f"{place} is not a list".strip()
            parts = [(str(number), item, inner) for number, item in enumerate(value, start=1)]
        case Each(inner):
            if not isinstance(value, dict):
                return f"{place} is not an object".strip()
            parts = [(repr(key), item, inner) for key, item in value.items()]
        case dict():
            if not isinstance(value, dict):
                return f"{place} is not an object".strip()
            if missing := [key for key in shape if key not in value and not isinstance(shape[key], Maybe)]:
                return f"{place} has no '{missing[0]}'".strip()
            parts = [(repr(key), value.get(key), inner) for key, inner in shape.items()]
    found = (find_difference(item, inner, f"{place} {name}") for name, item, inner in parts)
    return next(filter(None, found), None)
