"""Single replies with a label, as KTO takes them: `label` or `kto_tag`, true for a good reply and false for a bad one.

The reply is a `completion` to a `prompt`, or the end of `messages` or `conversations`. Good ones become dialogues, bad
ones are dropped there; the prompts of both are read. There are no pairs: nothing says that two replies were compared.
"""

from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Prompt
from utils.data.registry import Format, register
from utils.data.rows import Drop, Row
from utils.data.turns import answered, dialogue_in, prompt_in, prompt_of

LABEL = "label|kto_tag"
LABELS = ("true", "false")
NUMBERS = ("1", "0", "1.0", "0.0", "none")  # labels, too, where the other fields are those of such data
COMPLETION = "completion|response"


def is_label(row: Row) -> bool:
    """Whether the field can be such a label; elsewhere it is a topic, say."""
    value, known = str(row.fields[row.present(LABEL)]).lower(), {"completion", "kto_tag"} & set(row.fields)
    return value in LABELS or (bool(known) and value in NUMBERS)


def _check_good(row: Row) -> None:
    value = row.fields[row.present(LABEL)]
    if value is None:
        raise Drop("no label")
    if str(value).lower() in ("false", "0", "0.0"):
        raise Drop("labelled as a bad reply")


def _labelled_completion(row: Row) -> Dialogue:
    _check_good(row)
    return Dialogue(*answered(row, "prompt", row.present(COMPLETION)), row.source)


def _register_turns(field: str) -> None:
    def dialogue(row: Row) -> Dialogue:
        _check_good(row)
        return Dialogue(*dialogue_in(row, field), row.source)

    def prompt(row: Row) -> Prompt:
        return Prompt(prompt_in(row, field), row.source)

    register(Format(f"labelled_{field}", (field, LABEL), {PROMPTS: prompt, DIALOGUES: dialogue}, is_label))


register(
    Format(
        "labelled_completion",
        ("prompt", COMPLETION, LABEL),
        {
            PROMPTS: lambda row: Prompt(prompt_of(row, "prompt"), row.source),
            DIALOGUES: _labelled_completion,
        },
        fits=is_label,
    )
)
_register_turns("messages")
_register_turns("conversations")
