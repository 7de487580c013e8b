"""The typed access to a raw row that every format adapter uses.

A row that is well formed but of no use (an empty reply, a tie) raises `Drop` and is counted; a row whose
fields have the wrong type is a mistake in the file and raises `UserError` with its place.
"""

import math
from dataclasses import dataclass
from typing import Any

from utils.data.records import Message
from utils.process.errors import UserError

NO_NUMBER = ("", "n/a", "na", "none", "null", "nan")


class Drop(Exception):
    """A well-formed row that the view at hand cannot use; the message is the reason that is counted."""


@dataclass(frozen=True)
class Row:
    """One raw row: its fields and its place. The getters raise `UserError` "place: ..." on a wrong type."""

    fields: dict[str, Any]
    source: str

    def value(self, name: str) -> Any:
        """The field as it is; a missing one raises `UserError`."""
        if name not in self.fields:
            raise UserError(f"{self.source}: the field '{name}' is missing (found: {self.names()})")
        return self.fields[name]

    def present(self, names: str) -> str:
        """Of the names "a|b" for a field the first that the row uses; the first of all if none."""
        alternatives = names.split("|")
        return next((name for name in alternatives if name in self.fields), alternatives[0])

    def names(self) -> str:
        """The names of all fields, fit for one line."""
        names = ", ".join(name if name.isprintable() else repr(name) for name in map(str, self.fields))
        return names if len(names) <= 200 else names[:197] + "..."

    def wrong(self, name: str, expected: str, value: Any) -> UserError:
        """The error of a field that holds something other than `expected`."""
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return UserError(f"{self.source}: the field '{name}' must be {expected}, found {shown}")

    def text(self, name: str) -> str:
        """A text field. Half a surrogate pair, which no tokenizer accepts, drops the row."""
        return self.checked_text(name, self.value(name))

    def checked_text(self, name: str, value: Any) -> str:
        """`value` of the (possibly nested) field `name`, which must be text."""
        if not isinstance(value, str):
            raise self.wrong(name, "text", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Drop("text that is not valid Unicode") from None
        return value

    def optional_text(self, name: str) -> str:
        """A text field that may be missing or null, which read as the empty text."""
        return "" if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str, count: int) -> list[str]:
        """A list of exactly `count` texts."""
        values = self.value(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(name, f"a list of {count} texts", values)
        return [self.checked_text(name, value) for value in values]

    def choice(self, name: str) -> int | None:
        """Which of two responses: 0, 1, or None for null. Tables write them as "1" or 1.0 too."""
        value = self.value(name)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, bool) or value not in (0, 1, "0", "1"):
            raise self.wrong(name, "0 or 1", value)
        return int(value)

    def margin(self) -> float | None:
        """The number in a field of that name, if there is one: data may call anything else so."""
        value = self.fields.get("margin")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and math.isfinite(value) else None

    def checked_number(self, name: str, value: Any) -> float | None:
        """`value` of the (possibly nested) field `name` as a finite number; a truth value is 1 or 0.

        None where there is none: null, NaN, and the texts that tables write for it. Tables write numbers as texts, too.
        """
        if value is None or (isinstance(value, str) and value.strip().lower() in NO_NUMBER):
            return None
        try:
            number = float(value) if isinstance(value, int | float | str) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or math.isinf(number):
            raise self.wrong(name, "a number", value)
        return None if math.isnan(number) else number

    def flag(self, name: str) -> bool:
        """A truth value, or the words that comma-separated tables write for one."""
        value = self.value(name)
        words = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value


def user_turn(text: str) -> list[Message]:
    """The prompt of a single user turn; a blank one drops the row."""
    if not text.strip():
        raise Drop("empty prompt")
    return [{"role": "user", "content": text}]


def reply(text: str) -> str:
    """A reply as it is; a blank one drops the row."""
    if not text.strip():
        raise Drop("empty reply")
    return text


def distinct_replies(chosen: str, rejected: str) -> tuple[str, str]:
    """Both replies as they are; a blank one, or two that say the same, drop the row."""
    chosen, rejected = reply(chosen), reply(rejected)
    if chosen.strip() == rejected.strip():
        raise Drop("identical replies")
    return chosen, rejected
