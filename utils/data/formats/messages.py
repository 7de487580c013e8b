"""Chat rows: UltraChat's `messages` [{role, content}], and ShareGPT's `conversations` [{from, value}].

The prompt reaches up to the last user turn; the reply is the assistant turn after it.
"""

from utils.data.records import Dialogue, Drop, Message, Prompt, Row, reply
from utils.data.registry import Format, register

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def _turns(row: Row, field: str, role_key: str, content_key: str) -> list[Message]:
    turns = row.value(field)
    if not isinstance(turns, list) or not turns:
        raise row.wrong(field, f"a list of turns with '{role_key}' and '{content_key}'", turns)
    return [_turn(row, field, turn, role_key, content_key) for turn in turns]


def _turn(row: Row, field: str, turn: object, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict) or not {role_key, content_key} <= set(turn):
        raise row.wrong(field, f"a list of turns with '{role_key}' and '{content_key}'", turn)
    role = row.checked_text(f"{field}.{role_key}", turn[role_key])
    content = row.checked_text(f"{field}.{content_key}", turn[content_key])
    if role not in ROLES:
        raise Drop(f"turn by '{role}'")
    return {"role": ROLES[role], "content": content}


def _up_to_last_user(turns: list[Message]) -> list[Message]:
    users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    if not users:
        raise Drop("no user turn")
    messages = turns[: users[-1] + 1]
    if not messages[-1]["content"].strip():
        raise Drop("empty prompt")
    return messages


def _dialogue(turns: list[Message], source: str) -> Dialogue:
    messages = _up_to_last_user(turns)
    if len(turns) == len(messages) or turns[len(messages)]["role"] != "assistant":
        raise Drop("no reply after the last user turn")
    return Dialogue(messages, reply(turns[len(messages)]["content"]), source)


def _register(field: str, role_key: str, content_key: str) -> None:
    def turns(row: Row) -> list[Message]:
        return _turns(row, field, role_key, content_key)

    register(
        Format(
            field,
            (field,),
            lambda row: Prompt(_up_to_last_user(turns(row)), row.source),
            lambda row: _dialogue(turns(row), row.source),
        )
    )


_register("messages", "role", "content")
_register("conversations", "from", "value")
