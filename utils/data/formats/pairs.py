"""A prompt with a reply, with a preferred and a rejected one, or alone: `prompt` and `response`, `chosen`, `rejected`.

Prompts and replies are texts or turns (TRL's conversational formats, verl's prompts); a reply may also be the whole
dialogue (UltraFeedback), and a prompt the `conversations` before it (LLaMA-Factory). Names that others give the same
fields are read as well.
"""

from utils.data.formats.hh_rlhf import is_dialogue
from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Message, Pair, Prompt
from utils.data.registry import Format, preferences, register
from utils.data.rows import Drop, Row, distinct_replies
from utils.data.turns import answered, is_turns, prompt_of

PROMPT = "prompt|question|query|instruction|input|conversations|messages"  # before `chosen` and `rejected`
CHOSEN, REJECTED = "chosen|chosen_response", "rejected|rejected_response"


def _register(name: str, prompt: str, response: str | None) -> None:
    """A format of single replies, or of none."""

    def dialogue(row: Row) -> Dialogue:
        return Dialogue(*answered(row, row.present(prompt), row.present(response)), row.source)

    prompts = {PROMPTS: lambda row: Prompt(prompt_of(row, row.present(prompt)), row.source)}
    if response:
        register(Format(name, (prompt, response), prompts | {DIALOGUES: dialogue}))
    else:
        register(Format(name, (prompt,), prompts))


def _prompt(row: Row) -> list[Message]:
    if is_turns(row.value(row.present(CHOSEN))):
        return _chosen(row)[0]
    return prompt_of(row, row.present(PROMPT))


def _chosen(row: Row) -> tuple[list[Message], str]:
    return answered(row, row.present(PROMPT), row.present(CHOSEN))


def _pair(row: Row, label: str) -> Pair:
    (messages, chosen), (others, rejected) = _chosen(row), answered(row, row.present(PROMPT), row.present(REJECTED))
    if messages != others:
        raise Drop("dialogues that diverge before the last turn")
    return Pair(messages, *distinct_replies(chosen, rejected), None, None, row.source, row.margin())


register(
    Format(
        "prompt_chosen_rejected",
        (PROMPT, CHOSEN, REJECTED),
        {
            PROMPTS: lambda row: Prompt(_prompt(row), row.source),
            DIALOGUES: lambda row: Dialogue(*_chosen(row), row.source),
            **preferences(_pair),
        },
        # Beside dialogues of HH-RLHF, fields of other names may mean anything.
        fits=lambda row: "prompt" in row.fields or not is_dialogue(row.fields.get("chosen")),
    )
)
_register("prompt_response", "prompt|question|query", "response|completion|answer|output")
_register("input_output", "input", "output")
_register("prompts", "prompt", None)
