"""Conversations as people publish them, made into messages: other names of roles and keys, texts in parts, replies as
text or as turns, lists that a table holds as text.

What is no plain dialogue in text (a tool's turn, an image, a prompt that ends with the assistant) drops the row.
"""

import ast
import contextlib
import json
import re
from typing import Any

from utils.data.records import Message
from utils.data.rows import Drop, Row, reply, user_turn

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
TURNS = "a list of turns with 'role' and 'content', or 'from' and 'value'"
AS_TEXT = re.compile(r"\s*\[\s*\{\s*(['\"])(role|content|from|value)\1\s*:")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")  # beside the turns, which then only mark their places
TEXT_PARTS = ("text", "input_text", "output_text")


def decoded(value: Any) -> Any:
    """A list of turns that a table holds as text (JSON, or as Python prints lists); anything else as it is."""
    if isinstance(value, str) and AS_TEXT.match(value):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(value)
    return value


def is_turns(value: Any) -> bool:
    """Whether a field holds turns and not a text."""
    return isinstance(decoded(value), list | dict)


def turns_of(row: Row, field: str) -> list[Message]:
    """All turns of a field, at least one; a field with a single turn may be that turn.

    Raises `UserError` for anything but turns, and `Drop` for turns that are not text.
    """
    turns = decoded(row.value(field))
    if isinstance(turns, dict):
        turns = _rows_of(turns)
    if turns is None or turns == []:
        raise Drop(f"no turns in '{field}'")
    if not isinstance(turns, list):
        raise row.wrong(field, TURNS, turns)
    if media := next((name for name in MEDIA if row.fields.get(name)), None):
        raise Drop(f"{media.removesuffix('s')} in a turn")
    return [_turn(row, field, turn) for turn in turns]


def _rows_of(turns: dict[str, Any]) -> list[dict[str, Any]]:
    """Turns stored as a column for each key, as `datasets` does it, or else the one turn."""
    if not all(isinstance(column, list) for column in turns.values()):
        return [turns]
    return [dict(zip(turns, cells, strict=True)) for cells in zip(*turns.values(), strict=False)]


def _turn(row: Row, field: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise row.wrong(field, TURNS, turn)
    role_key, content_key = _key(turn, ROLE_KEYS), _key(turn, CONTENT_KEYS)
    if role_key is None:
        raise row.wrong(field, TURNS, turn)
    role = row.checked_text(f"{field}.{role_key}", turn[role_key])
    if (known := ROLES.get(role.strip().lower())) is None:
        raise Drop(f"turn by '{role}'")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Drop("tool call in a turn")
    if content_key is None:
        raise row.wrong(field, TURNS, turn)
    return {"role": known, "content": _content(row, f"{field}.{content_key}", turn[content_key])}


def _key(turn: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The key that a turn uses; tables give every turn all keys of all, with null in those that it lacks."""
    for key in keys:
        if turn.get(key) is not None:
            return key
    return next((key for key in keys if key in turn), None)


def _content(row: Row, name: str, content: Any) -> str:
    """The text of a turn, which may be in parts."""
    if content is None:
        raise Drop("turn without text")
    if not isinstance(content, list | dict):
        return row.checked_text(name, content)
    return "".join(_part(row, name, part) for part in ([content] if isinstance(content, dict) else content))


def _part(row: Row, name: str, part: Any) -> str:
    if not isinstance(part, dict):
        return row.checked_text(name, part)
    kind = str(part.get("type", "text"))
    if kind not in TEXT_PARTS:
        raise Drop(f"{kind.removeprefix('input_').removesuffix('_url')} in a turn")
    if part.get("text") is None:
        raise Drop("turn without text")
    return row.checked_text(name, part["text"])


def prompt_of(row: Row, field: str) -> list[Message]:
    """The prompt in a field: a text, or turns of which the last is the user's."""
    value = row.value(field)
    if is_turns(value):
        messages = turns_of(row, field)
        if all(message["role"] != "user" for message in messages):
            raise Drop("no user turn")
        if messages[-1]["role"] != "user":
            raise Drop(f"prompt that ends with a turn by '{messages[-1]['role']}'")
        _check_prompt(messages)
    else:
        # Some tables leave it null in all rows but the first of a group: those have no prompt of their own.
        text = "" if value is None else row.text(field)
        context = next((name for name in ("input", "context") if row.fields.get(name)), None)
        if field == "instruction" and context and row.text(context).strip():
            text = f"{text}\n\n{row.text(context)}"
        messages = user_turn(text)
    return _with_system(row, field, messages)


def dialogue_in(row: Row, field: str) -> tuple[list[Message], str]:
    """Prompt and reply of a field that holds a whole dialogue."""
    messages, response = prompt_and_reply(turns_of(row, field))
    return _with_system(row, field, messages), response


def prompt_in(row: Row, field: str) -> list[Message]:
    """The turns of a field up to the last user turn, whether a reply follows or not."""
    return _with_system(row, field, _up_to_last_user(turns_of(row, field)))


def answered(row: Row, prompt: str, answer: str) -> tuple[list[Message], str]:
    """Prompt and reply of two fields: a reply is a text, turns that follow the prompt, or the whole dialogue.

    A whole dialogue counts as it is. Turns in `prompt` have to be its beginning; a text there may be any of its turns.
    """
    if not is_turns(row.value(answer)):
        return prompt_of(row, prompt), reply(row.text(answer))
    turns = turns_of(row, answer)
    if not is_whole(turns):
        return prompt_and_reply(prompt_of(row, prompt) + turns)
    messages, response = prompt_and_reply(turns)
    if prompt not in OTHER_DIALOGUES and row.fields.get(prompt) and is_turns(row.fields[prompt]):
        beginning = prompt_of(row, prompt)
        _check_beginning(beginning, turns)
        if beginning[0]["role"] == "system" != turns[0]["role"]:
            messages = [beginning[0], *messages]
    return _with_system(row, answer, messages), response


OTHER_DIALOGUES = ("messages", "conversations")  # beside a whole dialogue they may hold anything, mostly that dialogue


def is_whole(turns: list[Message]) -> bool:
    """Whether turns are a dialogue from its start: the first one to speak is the user."""
    return next((turn["role"] for turn in turns if turn["role"] != "system"), None) == "user"


def _check_beginning(prompt: list[Message], turns: list[Message]) -> None:
    """A system turn may be in either alone."""
    begins, goes_on = ([turn for turn in part if turn["role"] != "system"] for part in (prompt, turns))
    if goes_on[: len(begins)] != begins:
        raise Drop("reply to another prompt")


def prompt_and_reply(turns: list[Message]) -> tuple[list[Message], str]:
    """Turns up to the last user turn, and what the assistant says after it, in several turns perhaps."""
    messages = _up_to_last_user(turns)
    after = turns[len(messages) :]
    if not after or any(turn["role"] != "assistant" for turn in after):
        raise Drop("no reply after the last user turn")
    return messages, reply("\n\n".join(turn["content"] for turn in after))


def _up_to_last_user(turns: list[Message]) -> list[Message]:
    users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    if not users:
        raise Drop("no user turn")
    messages = turns[: users[-1] + 1]
    _check_prompt(messages)
    return messages


def _check_prompt(messages: list[Message]) -> None:
    if not messages[-1]["content"].strip():
        raise Drop("empty prompt")


def _with_system(row: Row, field: str, messages: list[Message]) -> list[Message]:
    """The messages of `field` with the system turn that a row holds in a field of its own."""
    # Beside a plain prompt or input, `system` mostly names what wrote the reply.
    names = ("system_prompt",) if field in ("prompt", "input") else ("system_prompt", "system")
    name = next((name for name in names if isinstance(row.fields.get(name), str) and row.fields[name].strip()), None)
    if name is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": row.text(name)}, *messages]
