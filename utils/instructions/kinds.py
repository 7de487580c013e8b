"""The seam: a kind of instruction is one function, which checks a text, and what it is asked for with.

    @kind("words", "Use at least {count:word}.", near(count_words))
    def at_least_words(text: str, count: int) -> bool:
        return count_words(text) >= count

Its parameters after the text are the arguments of an instruction: a number is a count from 1 on, a text has a word in
it. Checks take any text, the empty one too.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from utils.instructions.texts import count_words
from utils.process.errors import UserError

Arguments = dict[str, int | str]
Check = Callable[..., bool]
# (generator, text, another text to the same prompt) -> arguments near what the texts are like, so that texts that meet
# the instruction and texts that break it come up; None where the texts suggest none.
Draw = Callable[[Random, str, str], Arguments | None]
MOST = 10**6  # that a count may be
EXPECTED = {int: f"a whole number from 1 to {MOST}", str: "text with a word in it"}


class Count(int):
    """A number that is written with what it counts: f"{Count(2):word}" is "2 words"."""

    def __format__(self, unit: str) -> str:
        return f"{int(self)} {unit}{'s' * (self != 1)}" if unit else str(int(self))


@dataclass(frozen=True)
class Kind:
    """One thing that can be asked of a text.

    Attributes:
        families: two kinds that share one may contradict each other, and do not stand in one prompt.
        wording: what is asked, with {arguments}.
        parameters: {argument: int or str}.
    """

    name: str
    families: frozenset[str]
    wording: str
    check: Check
    draw: Draw
    parameters: Mapping[str, type]

    def write(self, arguments: Arguments) -> str:
        """The instruction in words."""
        shown = {name: Count(value) if isinstance(value, int) else value for name, value in arguments.items()}
        return self.wording.format(**shown)

    def goes_with(self, other: "Kind") -> bool:
        """Whether both may stand in one prompt."""
        return not self.families & other.families

    def proposal(self, rng: Random, text: str, other: str) -> "Instruction | None":
        """An instruction near what a text, or another one to the same prompt, is like; None if they suggest none."""
        arguments = self.draw(rng, text, other)
        return None if arguments is None else Instruction(self, arguments)

    def check_arguments(self, arguments: Any, place: str) -> None:
        """Raise UserError for what are no arguments of this kind."""
        if not isinstance(arguments, dict) or arguments.keys() != self.parameters.keys():
            expected = ", ".join(self.parameters) or "none"
            raise UserError(f"{place}: the arguments of '{self.name}' are {expected}; found {shortened(arguments)}")
        for name, value in arguments.items():
            if not is_argument(self.parameters[name], value):
                expected = EXPECTED[self.parameters[name]]
                raise UserError(f"{place}: '{name}' of '{self.name}' must be {expected}, found {shortened(value)}")


def is_argument(expected: type, value: Any) -> bool:
    if type(value) is not expected:  # true and false are no numbers here
        return False
    return 1 <= value <= MOST if expected is int else count_words(value) > 0


def shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


KINDS: dict[str, Kind] = {}  # by name, in the order of registration


def kind(families: str, wording: str, draw: Draw) -> Callable[[Check], Kind]:
    """Register a function that checks a text as the kind of its name; `families` are words."""

    def register(check: Check) -> Kind:
        _, *parameters = inspect.signature(check).parameters.values()
        arguments = {each.name: each.annotation for each in parameters}
        found = Kind(check.__name__, frozenset(families.split()), wording, check, draw, arguments)
        if found.name in KINDS:
            raise ValueError(f"two kinds of instruction are called {found.name}")
        return KINDS.setdefault(found.name, found)

    return register


@dataclass(frozen=True)
class Instruction:
    """A kind with its arguments."""

    kind: Kind
    arguments: Arguments

    @property
    def text(self) -> str:
        """What a prompt says."""
        return self.kind.write(self.arguments)

    def met_by(self, response: str) -> bool:
        """Whether a response does what is asked."""
        return self.kind.check(response, **self.arguments)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, value: Any, place: str) -> "Instruction":
        """What `as_dict` has made. Raises UserError, which begins with `place`, for anything else."""
        if not isinstance(value, dict) or value.keys() != {"kind", "arguments"}:
            raise UserError(f"{place}: an instruction has 'kind' and 'arguments', found {shortened(value)}")
        name = value["kind"]
        if not isinstance(name, str) or name not in KINDS:
            known = ", ".join(KINDS)
            raise UserError(f"{place}: {shortened(name)} is no kind of instruction (known: {known})")
        KINDS[name].check_arguments(value["arguments"], place)
        return cls(KINDS[name], dict(value["arguments"]))
