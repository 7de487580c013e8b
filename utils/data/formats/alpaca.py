"""Alpaca's instruction rows: `instruction`, `input` (often empty), `output`; Dolly's say `context` and `response`."""

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Prompt
from utils.data.registry import Format, register
from utils.data.turns import answered, prompt_of

OUTPUT = "output|response"

register(
    Format(
        "alpaca",
        ("instruction", OUTPUT),
        {
            PROMPTS: lambda row: Prompt(prompt_of(row, "instruction"), row.source),
            DIALOGUES: lambda row: Dialogue(*answered(row, "instruction", row.present(OUTPUT)), row.source),
        },
    )
)
