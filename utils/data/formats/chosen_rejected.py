"""Preferences as two whole conversations: `chosen` and `rejected`, lists of turns (RLHFlow, Skywork, TRL).

They share all turns up to the last one of the user, which is the prompt; rows that diverge before it are dropped.
"""

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Pair, Prompt
from utils.data.registry import Format, preferences, register
from utils.data.rows import Drop, Row, distinct_replies
from utils.data.turns import dialogue_in, is_turns


def _pair(row: Row, label: str) -> Pair:
    (messages, chosen), (others, rejected) = dialogue_in(row, "chosen"), dialogue_in(row, "rejected")
    if messages != others:
        raise Drop("dialogues that diverge before the last turn")
    return Pair(messages, *distinct_replies(chosen, rejected), None, None, row.source, row.margin())


register(
    Format(
        "chosen_rejected",
        ("chosen", "rejected"),
        {
            PROMPTS: lambda row: Prompt(dialogue_in(row, "chosen")[0], row.source),
            DIALOGUES: lambda row: Dialogue(*dialogue_in(row, "chosen"), row.source),
            **preferences(_pair),
        },
        fits=lambda row: is_turns(row.fields["rejected" if row.fields["chosen"] is None else "chosen"]),
    )
)
