"""Test prompts as a steered policy reads them, and as everyone else does."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from utils.data.encoding import Encoded, encode_prompt
from utils.policy.sampled import Sampled, sampled_of
from utils.steering.directions import Direction, Steering


@dataclass(frozen=True)
class SteeredPrompt(Encoded):
    """A prompt whose ids hold a direction; its record does not, but for a note.

    Attributes:
        plain: the prompt without it.
    """

    plain: Encoded | None = None


def steer(
    prompts: Sequence[Encoded], steering: Steering, direction: Direction, tokenizer: PreTrainedTokenizerBase
) -> list[Encoded]:
    """The prompts with a direction in their system turn."""
    note = {"direction": dict(zip(direction.names, direction.weights, strict=True))}
    found = []
    for prompt in prompts:
        record = dataclasses.replace(prompt.record, fields={**prompt.record.fields, **note})
        ids = encode_prompt(tokenizer, steering.steered(prompt.record.messages, direction))
        found.append(SteeredPrompt(record, ids, (), plain=prompt))
    return found


def without_direction(sampled: Sampled, tokenizer: PreTrainedTokenizerBase) -> Sampled:
    """The same responses behind the prompts without a direction: what a reference has learned to read."""
    lengths = sampled.lengths.tolist()
    responses = [row[:length] for row, length in zip(sampled.actions.tolist(), lengths, strict=True)]
    return sampled_of([prompt.plain for prompt in sampled.prompts], responses, tokenizer)
