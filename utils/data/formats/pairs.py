"""Plain texts: `prompt` alone, with `response`, or with `chosen` and `rejected`; `input` with `output`."""

from utils.data.records import (
    Dialogue,
    Message,
    Pair,
    Prompt,
    Row,
    distinct_replies,
    reply,
    user_turn,
)
from utils.data.registry import LABELS, Format, register


def _messages(row: Row, field: str) -> list[Message]:
    # Some tables leave it null in all rows but the first of a group: those have no prompt of their own.
    return user_turn("" if row.value(field) is None else row.text(field))


def _register(name: str, prompt: str, response: str | None) -> None:
    """A format of single replies, or of none."""
    register(
        Format(
            name,
            (prompt, response) if response else (prompt,),
            lambda row: Prompt(_messages(row, prompt), row.source),
            (lambda row: Dialogue(_messages(row, prompt), reply(row.text(response)), row.source)) if response else None,
        )
    )


def _pair(row: Row, label: str) -> Pair:
    chosen, rejected = distinct_replies(row.text("chosen"), row.text("rejected"))
    return Pair(_messages(row, "prompt"), chosen, rejected, None, None, row.source)


register(
    Format(
        "prompt_chosen_rejected",
        ("prompt", "chosen", "rejected"),
        lambda row: Prompt(_messages(row, "prompt"), row.source),
        lambda row: Dialogue(_messages(row, "prompt"), reply(row.text("chosen")), row.source),
        _pair,
        LABELS,
    )
)
_register("prompt_response", "prompt", "response")
_register("input_output", "input", "output")
_register("prompts", "prompt", None)
