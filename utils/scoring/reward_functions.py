"""Objectives that are functions: a rule, a verifier, anything that gives every response a number, higher is better.

    def conciseness(prompts: list[str], responses: list[str]) -> list[float | None]

`prompts` are the last user turns, as in the files of eval/generate.py, and `responses` the texts without special
tokens. None in place of a number says that this objective does not judge a response: it leaves the objective's figures,
its loss and what that is a mean over. A function with a parameter named `messages` gets the whole dialogues as well,
each a list of turns with 'role' and 'content'. It is called on every rank for that rank's own responses, a rollout's
batch at a time, and its values must not depend on the other responses of the call: batches differ between training and
evaluation. A call counts as one phase of a rank: a verifier may take `--rank_timeout` seconds for a batch.

A function that raises, as one behind a server may, is called again (`Retries`); one that returns something else than a
number or None a response (NaN is no number) has a mistake in it, and ends the run.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from utils.cli.plugins import load_function, reason_of
from utils.data.records import Message, Prompt
from utils.process.errors import UserError
from utils.process.plain_text import printable
from utils.process.random_states import random_states, restore_random_states
from utils.process.rank_watch import beat

LARGEST = 3.4028234663852886e38  # of float32, in which values go on
LONGEST_PAUSE = 60.0  # seconds between two tries, unless the first pause is longer
SECONDS_BETWEEN_BEATS = 0.5


@dataclass(frozen=True)
class Retries:
    """How many times a function that fails is called again, and the seconds before the first; they double with each."""

    number: int = 0
    wait: float = 1.0

    def pause(self, failed: int) -> float:
        """Seconds after so many tries."""
        return min(max(LONGEST_PAUSE, self.wait), self.wait * 2.0 ** min(failed - 1, 30))


def as_number(value: Any) -> float | None:
    """Raises: TypeError: text, which `float` would read. Whatever `float` raises."""
    if value is None:
        return None
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text, not a number")
    return float(value)


@dataclass(frozen=True)
class RewardFunction:
    """A function of responses.

    Attributes:
        flag: the words of the command line that name it.
        read: what a value means; raises whatever for one that means nothing.
        what: what its values are called.
    """

    flag: str
    function: Callable[..., Any]
    takes_messages: bool
    retries: Retries = Retries()
    read: Callable[[Any], float | None] = as_number
    what: str = "numbers"

    def __call__(
        self, prompts: list[str], responses: list[str], messages: list[Sequence[Message]], sources: list[str]
    ) -> list[float | None]:
        """One value a response; None where it does not judge one.

        Args:
            sources: places of the prompts, for error messages.

        Raises:
            UserError: the function fails at every try, or does not give one finite number, or None, a response.
        """
        place = f"{sources[0]} and {len(sources) - 1} more" if len(sources) > 1 else sources[0]
        found = self.try_often(prompts, responses, messages, place)
        try:
            values = [self.read(value) for value in found]
        except Exception as error:  # a function of the user's may return anything
            raise UserError(f"{self.flag}: no {self.what} for the responses to {place} ({reason_of(error)})") from error
        if len(values) != len(responses):
            raise UserError(f"{self.flag}: {len(values)} values for {len(responses)} responses (from {sources[0]} on)")
        for source, value in zip(sources, values, strict=True):
            if value is not None and not abs(value) <= LARGEST:
                raise UserError(f"{self.flag}: the value of the response to {source} is {value}, no finite float32")
        return values

    def try_out(self, prompt: Prompt) -> None:
        """Raises: UserError: it fails for two responses to a prompt."""
        text, replies = prompt.messages[-1]["content"], ["Yes.", "No."]
        self([text] * len(replies), replies, [prompt.messages] * len(replies), [prompt.source] * len(replies))

    def try_often(self, prompts: list[str], responses: list[str], messages: list[Sequence[Message]], place: str) -> Any:
        """What the function returns at the first try at which it does not fail.

        Raises:
            UserError: it fails at every try.
        """
        tries, states = self.retries.number + 1, random_states()
        for number in range(1, tries + 1):
            try:
                return self.call(prompts, responses, messages)
            except (Exception, SystemExit) as error:  # a function of the user's may raise anything
                failure = error
            if number < tries:
                self.pause(number, place, failure)
                restore_random_states(states)  # a failure does not change what is random after it
        often = f" {tries} times in a row, at last" if tries > 1 else ""
        raise UserError(f"{self.flag}: fails{often} on the responses to {place} ({reason_of(failure)})") from failure

    def call(self, prompts: list[str], responses: list[str], messages: list[Sequence[Message]]) -> Any:
        """One try, on copies; raises whatever the function raises, also while it yields its values."""
        more = {"messages": [[dict(turn) for turn in turns] for turns in messages]} if self.takes_messages else {}
        found = self.function(list(prompts), list(responses), **more)
        return list(found) if isinstance(found, Iterator) else found

    def pause(self, failed: int, place: str, failure: BaseException) -> None:
        """Say what failed and wait; a rank that does is not stuck."""
        seconds = self.retries.pause(failed)
        line = f"{self.flag}: try {failed} of {self.retries.number + 1} fails on the responses to {place}"
        print(printable(f"{line} ({reason_of(failure)}); next try in {seconds:g} s"), flush=True)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            beat(f"waiting for try {failed + 1} of {self.flag}")
            time.sleep(min(left, SECONDS_BETWEEN_BEATS))
        beat(f"try {failed + 1} of {self.flag}")


def load_reward_function(
    spec: str,
    flag: str,
    retries: Retries = Retries(),
    read: Callable[[Any], float | None] = as_number,
    what: str = "numbers",
) -> RewardFunction:
    """The function that 'module:function' names; `flag` is that of the command line, without the specification.

    Args:
        read, what: see `RewardFunction`.

    Raises:
        UserError: it does not take (prompts, responses), or see `load_function`.
    """
    words = f"{flag}={spec}"
    function = load_function(spec, words)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that does not tell
        return RewardFunction(words, function, False, retries, read, what)
    takes_messages = "messages" in signature.parameters
    try:
        signature.bind([], [], **({"messages": []} if takes_messages else {}))
    except TypeError as error:
        raise UserError(f"{words}: cannot be called with (prompts, responses): {error}") from None
    return RewardFunction(words, function, takes_messages, retries, read, what)
