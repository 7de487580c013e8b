"""One reply to two prompts: `chosen_prompt`, `rejected_prompt`, `response` (MAPL; see utils/make_prompt_pairs.py)."""

from utils.data.prompt_pairs import PROMPT_PAIRS, SIDES, PromptPair
from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Prompt
from utils.data.registry import Format, register
from utils.data.rows import Drop, Row, reply
from utils.data.turns import prompt_of


def _pair(row: Row) -> PromptPair:
    chosen, rejected = prompt_of(row, "chosen_prompt"), prompt_of(row, "rejected_prompt")
    if chosen == rejected:
        raise Drop("identical prompts")
    side = row.fields.get("side")
    if side is not None and side not in SIDES:
        raise row.wrong("side", " or ".join(SIDES), side)
    return PromptPair(chosen, rejected, reply(row.text("response")), side, row.source)


register(
    Format(
        "prompt_pairs",
        ("chosen_prompt", "rejected_prompt", "response"),
        {
            PROMPTS: lambda row: Prompt(prompt_of(row, "chosen_prompt"), row.source),
            DIALOGUES: lambda row: Dialogue(prompt_of(row, "chosen_prompt"), reply(row.text("response")), row.source),
            PROMPT_PAIRS: _pair,
        },
    )
)
