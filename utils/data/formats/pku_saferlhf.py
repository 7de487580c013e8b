"""PKU-SafeRLHF's rows: two responses, each labelled safe or not, and which is better and which is safer.

Fields: prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, better_response_id,
safer_response_id (Ji et al. 2023, BeaverTails; Dai et al. 2023, Safe RLHF).
"""

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Pair, Prompt
from utils.data.registry import Format, NotOffered, preferences, register
from utils.data.rows import Drop, Row, distinct_replies, reply, user_turn


def _preferred(row: Row, label: str) -> int:
    name = f"{label}_response_id"
    if name not in row.fields:
        raise NotOffered(f"{row.source}: the field '{name}' is missing (found: {row.names()})")
    preferred = row.choice(name)
    if preferred is None:
        raise Drop("tie")
    return preferred


def _is_safe(row: Row, index: int) -> bool | None:
    name = f"is_response_{index}_safe"
    return row.flag(name) if name in row.fields else None  # the editions with one preference lack the labels


def _prompt(row: Row) -> Prompt:
    return Prompt(user_turn(row.text("prompt")), row.source)


def _dialogue(row: Row) -> Dialogue:
    better = row.text(f"response_{_preferred(row, 'better')}")
    return Dialogue(user_turn(row.text("prompt")), reply(better), row.source)


def _pair(row: Row, label: str) -> Pair:
    replies = row.text("response_0"), row.text("response_1")
    safe = _is_safe(row, 0), _is_safe(row, 1)
    first = _preferred(row, label)
    chosen, rejected = distinct_replies(replies[first], replies[1 - first])
    return Pair(user_turn(row.text("prompt")), chosen, rejected, safe[first], safe[1 - first], row.source)


register(
    Format(
        "pku_saferlhf",
        ("prompt", "response_0", "response_1"),
        {PROMPTS: _prompt, DIALOGUES: _dialogue, **preferences(_pair)},
    )
)
