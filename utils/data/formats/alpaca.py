"""Alpaca's instruction rows: `instruction`, `input` (often empty), `output`."""

from utils.data.records import Dialogue, Message, Prompt, Row, reply, user_turn
from utils.data.registry import Format, register


def _messages(row: Row) -> list[Message]:
    instruction, context = row.text("instruction"), row.optional_text("input")
    return user_turn(f"{instruction}\n\n{context}" if context.strip() else instruction)


def _prompt(row: Row) -> Prompt:
    return Prompt(_messages(row), row.source)


def _dialogue(row: Row) -> Dialogue:
    return Dialogue(_messages(row), reply(row.text("output")), row.source)


register(Format("alpaca", ("instruction", "output"), _prompt, _dialogue))
