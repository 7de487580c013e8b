"""Safety pairs: `prompt`, `responses` [2] and `safer`, the index of the only safe one (null for a tie)."""

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Pair, Prompt
from utils.data.registry import Format, preferences, register
from utils.data.rows import Drop, Row, distinct_replies, reply, user_turn


def _safe_and_unsafe(row: Row) -> tuple[str, str]:
    responses, safer = row.texts("responses", 2), row.choice("safer")
    if safer is None:
        raise Drop("tie")
    return responses[safer], responses[1 - safer]


def _prompt(row: Row) -> Prompt:
    return Prompt(user_turn(row.text("prompt")), row.source)


def _dialogue(row: Row) -> Dialogue:
    return Dialogue(user_turn(row.text("prompt")), reply(_safe_and_unsafe(row)[0]), row.source)


def _pair(row: Row, label: str) -> Pair:
    chosen, rejected = distinct_replies(*_safe_and_unsafe(row))
    return Pair(user_turn(row.text("prompt")), chosen, rejected, True, False, row.source)


register(
    Format(
        "safety_pairs",
        ("prompt", "responses", "safer"),
        {PROMPTS: _prompt, DIALOGUES: _dialogue, **preferences(_pair, ("safer",))},
    )
)
