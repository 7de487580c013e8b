"""Replies rated on several attributes, in the layouts that people publish.

A mapping {attribute: number or null} in `scores` or `ratings` beside prompt and reply, or beside `messages`; the five
columns of HelpSteer (Wang et al. 2023, 2024); the columns of ArmoRM's data beside `messages` (Wang et al. 2024);
UltraFeedback's `completions` (Cui et al. 2023), of which a row holds several. Columns of other names are read where
`--attributes` names them. Of mappings in one `group` only the first needs to have the prompt, which is null elsewhere.
"""

import re
from typing import Any

from utils.data.formats.labelled import LABEL, is_label
from utils.data.ratings import RATINGS, Rated, rated
from utils.data.records import DIALOGUES, PROMPTS, Dialogue, Message, Prompt
from utils.data.registry import Format, register
from utils.data.rows import Drop, Row, reply
from utils.data.turns import answered, dialogue_in, prompt_in, prompt_of

SCORES = "scores|ratings"
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")  # between the turns of a prompt of several
# In the order of the model that was trained on them.
ARMORM = (
    *(f"helpsteer-{name}" for name in HELPSTEER),
    *(
        f"ultrafeedback-{name}"
        for name in ("overall_score", "instruction_following", "truthfulness", "honesty", "helpfulness")
    ),
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    *(f"code-{name}" for name in ("complexity", "style", "explanation", "instruction-following", "readability")),
)


# --- a mapping in a field


def _is_mapping(row: Row) -> bool:
    """Whether the field can be ratings: some number is in it, or nothing at all. Beside a label of KTO's it is not."""
    scores = row.fields[row.present(SCORES)]
    if not isinstance(scores, dict) or (row.present(LABEL) in row.fields and is_label(row)):
        return False
    found = [value for value in scores.values() if value is not None]
    return not found or any(map(_is_number, found))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _register_mapping(name: str, prompt: str, response: str) -> None:
    def dialogue(row: Row) -> tuple[list[Message], str]:
        return answered(row, row.present(prompt), row.present(response))

    def ratings(row: Row) -> Rated:
        field = row.present(SCORES)
        return rated(row, *dialogue(row), row.value(field), field)

    views = {
        PROMPTS: lambda row: Prompt(prompt_of(row, row.present(prompt)), row.source),
        DIALOGUES: lambda row: Dialogue(*dialogue(row), row.source),
        RATINGS: ratings,
    }
    register(Format(name, (prompt, response, SCORES), views, _is_mapping, shared=tuple(prompt.split("|"))))


def _messages_with_scores(row: Row) -> Rated:
    field = row.present(SCORES)
    return rated(row, *dialogue_in(row, "messages"), row.value(field), field)


# --- columns of known names


def _helpsteer_dialogue(row: Row) -> tuple[list[Message], str]:
    return _helpsteer_prompt(row), reply(row.text("response"))


def _helpsteer_prompt(row: Row) -> list[Message]:
    """HelpSteer2 writes a prompt of several turns in one text."""
    messages = prompt_of(row, "prompt")
    first, *parts = HELPSTEER_TURN.split(messages[-1]["content"])
    roles = ["user", *(role.lower() for role in parts[::2])]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise Drop("turns that do not alternate")
    turns = [{"role": role, "content": text} for role, text in zip(roles, (first, *parts[1::2]), strict=True)]
    if not turns[-1]["content"].strip():
        raise Drop("empty prompt")
    return [*messages[:-1], *turns]


def _columns(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row.fields[name] for name in names if name in row.fields}


# --- several replies in a row


def _completions(row: Row) -> list[dict[str, Any]]:
    found = row.value("completions")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise row.wrong("completions", "a list of objects", found)
    if not found:
        raise Drop("no completions")
    return found


def _ultrafeedback(row: Row) -> list[Rated | Drop]:
    messages = prompt_of(row, "instruction")
    return [_completion(row, messages, each, number) for number, each in enumerate(_completions(row), start=1)]


def _completion(row: Row, messages: list[Message], completion: dict[str, Any], number: int) -> Rated | Drop:
    """A reply: `response`, `overall_score`, and `annotations` {attribute: {"Rating": ...} or number}."""
    place = f"completions[{number - 1}]"
    annotations = completion.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise row.wrong(f"{place}.annotations", "an object", annotations)
    ratings = {name: each.get("Rating") if isinstance(each, dict) else each for name, each in annotations.items()}
    ratings |= {"overall_score": completion.get("overall_score")}
    one = Row(row.fields, f"{row.source}, completion {number}")
    try:
        return rated(one, messages, reply(row.checked_text(f"{place}.response", completion.get("response"))), ratings)
    except Drop as reason:
        return reason


_register_mapping("rated", "prompt|question|query", "response|completion|answer|output")
_register_mapping("rated_instruction", "instruction", "output|response")
_register_mapping("rated_input", "input", "output")
register(
    Format(
        "rated_messages",
        ("messages", SCORES),
        {
            PROMPTS: lambda row: Prompt(prompt_in(row, "messages"), row.source),
            DIALOGUES: lambda row: Dialogue(*dialogue_in(row, "messages"), row.source),
            RATINGS: _messages_with_scores,
        },
        _is_mapping,
    )
)
register(
    Format(
        "helpsteer",
        ("prompt", "response", *HELPSTEER),
        {
            PROMPTS: lambda row: Prompt(_helpsteer_prompt(row), row.source),
            DIALOGUES: lambda row: Dialogue(*_helpsteer_dialogue(row), row.source),
            RATINGS: lambda row: rated(row, *_helpsteer_dialogue(row), _columns(row, HELPSTEER)),
        },
    )
)
register(
    Format(
        "armorm",
        ("messages", "|".join(ARMORM)),
        {
            PROMPTS: lambda row: Prompt(prompt_in(row, "messages"), row.source),
            DIALOGUES: lambda row: Dialogue(*dialogue_in(row, "messages"), row.source),
            RATINGS: lambda row: rated(row, *dialogue_in(row, "messages"), _columns(row, ARMORM)),
        },
    )
)
register(
    Format(
        "ultrafeedback",
        ("instruction", "completions"),
        {PROMPTS: lambda row: Prompt(prompt_of(row, "instruction"), row.source), RATINGS: _ultrafeedback},
    )
)
