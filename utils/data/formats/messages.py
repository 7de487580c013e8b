"""Chat rows: UltraChat's `messages` [{role, content}], and ShareGPT's `conversations` [{from, value}].

The prompt reaches up to the last user turn; the reply is what the assistant says after it.
"""

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Prompt
from utils.data.registry import Format, register
from utils.data.turns import dialogue_in, prompt_in


def _register(field: str) -> None:
    register(
        Format(
            field,
            (field,),
            {
                PROMPTS: lambda row: Prompt(prompt_in(row, field), row.source),
                DIALOGUES: lambda row: Dialogue(*dialogue_in(row, field), row.source),
            },
        )
    )


_register("messages")
_register("conversations")
