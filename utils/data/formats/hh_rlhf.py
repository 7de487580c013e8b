"""HH-RLHF's rows: `chosen` and `rejected`, whole dialogues "\\n\\nHuman: ...\\n\\nAssistant: ..." (Bai et
al. 2022).

The two share all turns but the last, in nearly all rows: the others are dropped, each kind with its own
reason. Line ends of Windows become "\\n", as the turns are told by them; texts of other formats stay as they are.
"""

import re
from typing import Any

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Message, Pair, Prompt
from utils.data.registry import Format, preferences, register
from utils.data.rows import Drop, Row, distinct_replies, reply, user_turn

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(value: Any) -> bool:
    """Whether a field holds such a dialogue."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def _turns(row: Row, name: str) -> list[Message]:
    """All turns of one dialogue, texts stripped; the last is the reply."""
    before, *parts = SPEAKER.split("\n\n" + row.text(name).replace("\r\n", "\n").strip())
    turns = [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or len(turns) < 2 or turns[0]["role"] != "user":
        raise Drop("not a dialogue of Human and Assistant turns")
    if turns[-1]["role"] != "assistant":
        raise Drop("dialogue ends with a human turn")
    return turns


def _prompt_and_reply(turns: list[Message]) -> tuple[list[Message], str]:
    """Joins what one speaker says in several turns in a row (chat templates want them to alternate)."""
    joined: list[Message] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = {**turn, "content": f"{joined[-1]['content']}\n\n{turn['content']}"}
        else:
            joined.append(turn)
    *messages, last = joined
    return messages[:-1] + user_turn(messages[-1]["content"]), last["content"]


def _prompt(row: Row) -> Prompt:
    return Prompt(_prompt_and_reply(_turns(row, "chosen"))[0], row.source)


def _dialogue(row: Row) -> Dialogue:
    turns = _turns(row, "chosen")
    reply(turns[-1]["content"])
    return Dialogue(*_prompt_and_reply(turns), row.source)


def _pair(row: Row, label: str) -> Pair:
    chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise Drop("dialogues that diverge before the last turn")
    distinct_replies(chosen[-1]["content"], rejected[-1]["content"])
    messages, chosen_reply = _prompt_and_reply(chosen)
    return Pair(messages, chosen_reply, _prompt_and_reply(rejected)[1], None, None, row.source)


register(Format("hh_rlhf", ("chosen", "rejected"), {PROMPTS: _prompt, DIALOGUES: _dialogue, **preferences(_pair)}))
