"""The lines of a file of responses, read and checked."""

from pathlib import Path
from typing import Any

from eval.results.runs import read_json_lines
from utils.data.rows import Drop
from utils.data.rows import Row as RawRow
from utils.process.errors import UserError

Row = dict[str, Any]
KINDS = {
    "prompt": (str, "text"),
    "messages": (list, "a list of turns"),
    "source": (str, "text"),
    "response": (str, "text"),
    "length": (int, "a whole number"),
    "finished": (bool, "true or false"),
    "kl": (int | float, "a number"),
}  # of the fields of a response
FIELDS = set(KINDS)


def read_rows(file: Path, flag: str, fields: set[str]) -> list[Row]:
    """The lines of a file of responses.

    Raises:
        UserError: a file that is missing or empty, or a line without one of the `fields`.
    """
    if not file.is_file():
        raise UserError(f"{flag} {file}: no such file")
    rows = read_json_lines(file)
    if not rows:
        raise UserError(f"{flag} {file}: the file is empty")
    for number, row in enumerate(rows, start=1):
        check_row(RawRow(row, f"{file}:{number}"), fields)
    return rows


def check_row(row: RawRow, fields: set[str]) -> None:
    """Raises: UserError: one of the `fields` is missing, or holds something other than eval/generate.py writes."""
    for name in sorted(fields):
        kind, what = KINDS[name]
        if not isinstance(row.value(name), kind):
            raise row.wrong(name, what, row.value(name))
        if kind is str:
            check_unicode(row, name, row.value(name))
    for turn in row.value("messages"):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise row.wrong("messages", "a list of turns with 'role' and 'content'", turn)
        for key in ("role", "content"):
            check_unicode(row, f"messages.{key}", turn[key])


def check_unicode(row: RawRow, name: str, text: str) -> None:
    """Raises: UserError: half a surrogate pair, which no tokenizer accepts."""
    try:
        row.checked_text(name, text)
    except Drop:
        raise row.wrong(name, "text that is valid Unicode", text) from None
