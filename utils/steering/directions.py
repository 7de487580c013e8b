"""Directions over attributes, and how a prompt says them (DPA, arXiv 2402.18571).

A direction is a unit vector v, one weight an attribute; a policy that was trained to follow directions reads v in its
system turn, as integers round(100 v), and answers so that the weighted rating vᵀr is large.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.data.records import Message
from utils.process.errors import UserError

PLACE = "{weights}"  # of a message, where the weights go
MESSAGE = f"Your response should maximize weighted rating = {PLACE}."
KEY = "steering"  # of a policy's config.json


@dataclass(frozen=True)
class Direction:
    """A unit vector over named attributes.

    Attributes:
        names: of the attributes.
        weights: of each; their squares add up to 1.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, names: Sequence[str], weights: Sequence[float]) -> "Direction":
        """The direction of a vector of any length.

        Raises:
            ValueError: the vector is zero, or not finite.
        """
        length = math.hypot(*weights)
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"{list(weights)} is no direction")
        return cls(tuple(names), tuple(weight / length for weight in weights))

    @property
    def angle(self) -> float:
        """Degrees from the first attribute towards the others; negative where these count negative."""
        first, others = self.weights[0], self.weights[1:]
        sign = math.copysign(1.0, sum(others)) if others else 1.0
        return math.degrees(math.atan2(sign * math.hypot(*others), first))

    @property
    def percents(self) -> tuple[int, ...]:
        """round(100 v): what the message says."""
        return tuple(round(100 * weight) for weight in self.weights)

    def said(self) -> str:
        """The weighted rating, such as helpfulness*92 + verbosity*38."""
        return " + ".join(f"{name}*{n}" for name, n in zip(self.names, self.percents, strict=True))


@dataclass(frozen=True)
class Steering:
    """What a policy is steered by.

    Attributes:
        attributes: in the order of its message.
        message: the text of the system turn, with `PLACE` where the weights go.
    """

    attributes: tuple[str, ...]
    message: str = MESSAGE

    def text(self, direction: Direction) -> str:
        """What the system turn says of a direction."""
        return self.message.replace(PLACE, direction.said())

    def steered(self, messages: Sequence[Message], direction: Direction) -> list[Message]:
        """The turns with the direction in the system turn, behind what that says already."""
        text, turns = self.text(direction), list(messages)
        if turns and turns[0]["role"] == "system":
            return [{"role": "system", "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
        return [{"role": "system", "content": text}, *turns]

    def direction(self, weights: Mapping[str, float], flag: str) -> Direction:
        """The direction that a user has named; attributes that are not named weigh 0.

        Raises:
            UserError: another attribute, or all weights are 0; names `flag`.
        """
        there = f"it is steered by {', '.join(self.attributes)}"
        if unknown := [name for name in weights if name not in self.attributes]:
            raise UserError(f"{flag} {unknown[0]}: no attribute of the policy ({there})")
        try:
            return Direction.of(self.attributes, [weights.get(name, 0.0) for name in self.attributes])
        except ValueError:
            raise UserError(f"{flag}: at least one weight is other than 0 ({there})") from None

    def as_config(self) -> dict[str, Any]:
        """The value of `KEY` in config.json."""
        return {"attributes": list(self.attributes), "message": self.message}


def steering_of(config: Any, what: str) -> Steering | None:
    """What a policy's configuration says it is steered by; None of one that is not.

    Raises:
        UserError: the entry is no such thing; names `what`.
    """
    found = getattr(config, KEY, None)
    if found is None:
        return None
    attributes, message = (found.get("attributes"), found.get("message")) if isinstance(found, dict) else (None, None)
    names = isinstance(attributes, list) and len(attributes) > 1 and all(isinstance(name, str) for name in attributes)
    if not names or not isinstance(message, str) or PLACE not in message:
        raise UserError(f"{what}: config.json: {KEY!r} is not {{attributes: [...], message: ...{PLACE}...}}")
    return Steering(tuple(attributes), message)


def at_angle(names: Sequence[str], degrees: float, others: Sequence[float] = (1.0,)) -> Direction:
    """cos θ of the first attribute, sin θ of the others, shared out among them as `others` ([m − 1], unit) says."""
    theta = math.radians(degrees)
    return Direction.of(names, [math.cos(theta), *(math.sin(theta) * other for other in others)])


def spread(least: float, most: float, number: int) -> list[float]:
    """So many angles at equal distances, both ends included."""
    return [least + (most - least) * i / (number - 1) for i in range(number)] if number > 1 else [(least + most) / 2]
