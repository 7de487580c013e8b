"""One reply to two prompts, one of which it answers better: what MAPL trains on (arXiv 2505.12845)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from utils.data.records import Message, Record, View

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PromptPair(Record):
    """A reply, the prompt whose instructions it meets, and one whose instructions it meets less.

    Attributes:
        messages: the chosen prompt.
        rejected_prompt: the other one.
        side: which reply of an ordinary pair this is, "chosen" or "rejected"; None where the data does not say.
    """

    PLURAL: ClassVar[str] = "prompt pairs"
    CONTENT: ClassVar[str] = "two prompts to a reply"
    REPLIES: ClassVar[tuple[str, ...]] = ("response",)

    messages: list[Message]
    rejected_prompt: list[Message]
    response: str
    side: str | None
    source: str

    @property
    def prompts(self) -> list[list[Message]]:
        """The chosen and the rejected one."""
        return [self.messages, self.rejected_prompt]

    def identity(self, prompt: list[int], responses: Sequence[list[int]]) -> Any:
        """Token ids; the side trains nothing."""
        return [prompt, *responses]

    def shown(self) -> list[tuple[str, str]]:
        """Both prompts, and the reply."""
        rejected = [(f"or {message['role']}", message["content"]) for message in self.rejected_prompt]
        *turns, reply = super().shown()
        return [*turns, *rejected, reply]


PROMPT_PAIRS = View(PromptPair)
