"""A policy's side of a conversation: its history, its answers, what they score."""

import argparse
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from eval.chatting.page import Columns, Lines, new_page
from eval.results.explanations import largest, reason
from eval.results.grading import Gold, grade
from eval.results.rows import Row
from utils.data.encoding import encode_prompt, end_ids, response_text
from utils.data.records import Message
from utils.models.configs import positions_of, sampling_config
from utils.process.distributed import device, seed_everything
from utils.process.errors import UserError
from utils.process.plain_text import printable
from utils.scoring.scorers import RowScorer
from utils.steering.directions import Direction, Steering


@dataclass
class Policy:
    """A policy and its side of the conversation.

    Attributes:
        system: what every conversation begins with: a system turn, or nothing.
        steering: of a policy that follows directions.
        direction: the present one, which the history does not hold.
        history: begins with the system turn and, between two questions, ends with an answer.
    """

    name: str
    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    system: list[Message]
    steering: Steering | None = None
    direction: Direction | None = None
    history: list[Message] = field(init=False)

    def __post_init__(self):
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.history = [*self.system]

    def encode(self, messages: list[Message]) -> list[int]:
        """Ids of turns as the policy reads them: with its direction, if it has one."""
        if self.steering and self.direction:
            messages = self.steering.steered(messages, self.direction)
        return encode_prompt(self.tokenizer, messages)


class PageStreamer(TextStreamer):
    """Writes an answer on a page as it is generated, and keeps its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, page: Lines | Columns):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.page = page
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt:
            super().put(value)
            return
        self.ids += value.flatten().tolist()
        if self.ids[-1] not in end_ids(self.tokenizer):  # not always one of the special tokens, which are skipped
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.page.write(printable(text) + "\n" * stream_end)


def system_turns(args: argparse.Namespace) -> list[Message]:
    """What every history begins with."""
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def room_for_prompt(model: PreTrainedModel, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have; None without a limit."""
    positions = positions_of(model.config)
    return None if positions is None else positions - max_new_tokens


def generation_settings(tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> GenerationConfig:
    config = sampling_config(tokenizer, args.temperature, args.max_new_tokens)
    if args.greedy:
        config.do_sample, config.temperature, config.top_k, config.top_p = False, None, None, None
    return config


def fit_history(
    policy: Policy, question: str, max_new_tokens: int, page: Lines | Columns
) -> tuple[list[Message], list[int]]:
    """A policy's history with the question added, and its ids; of one too long the oldest turns are left out.

    Raises:
        UserError: not even the question alone fits.
    """
    messages = [*policy.history, {"role": "user", "content": question}]
    room, dropped, first = room_for_prompt(policy.model, max_new_tokens), 0, len(policy.system)
    ids = policy.encode(messages)
    while room is not None and len(ids) > room:
        if len(messages) < first + 3:
            what = "the system turn and the question have" if policy.system or policy.direction else "the question has"
            raise UserError(f"{what} {len(ids)} tokens, there is room for {room}")
        messages, dropped = [*policy.system, *messages[first + 2 :]], dropped + 1
        ids = policy.encode(messages)
    if dropped:
        total = len(policy.history) // 2
        page.note(f"(the history got too long: without the oldest {dropped} of {total} exchanges)")
    return messages, ids


def answer(
    policy: Policy, messages: list[Message], ids: list[int], page: Lines | Columns, args: argparse.Namespace
) -> Row:
    """Generate on the page, to the end or to Ctrl-C, and remember it. The row is like those of eval/generate.py."""
    streamer = PageStreamer(policy.tokenizer, page)
    policy.model.generation_config = generation_settings(policy.tokenizer, args)
    prompt = torch.tensor([ids], device=device())
    seed_everything(args.seed + len(policy.history) // 2)
    try:
        policy.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), streamer=streamer)
    except KeyboardInterrupt:
        streamer.end()
        page.note("(interrupted)")
    response = response_text(policy.tokenizer, streamer.ids)
    policy.history = [*messages, {"role": "assistant", "content": response}]
    finished = bool(streamer.ids) and streamer.ids[-1] in end_ids(policy.tokenizer)
    return {"prompt": messages[-1]["content"], "messages": messages, "response": response, "finished": finished}


def score_answer(
    row: Row, scorers: dict[str, RowScorer], gold: tuple[Gold, str] | None, page: Lines | Columns, shown: int | None
) -> tuple[list[str], list[str]]:
    """'objective value' for every objective and for the gold scores, whose function is given with its name; and why.

    An objective that cannot be scored, such as one whose model's template knows no system turns, gets a note.

    Args:
        shown: contributions of an objective's attributes, where the scorers give them.
    """
    rows, parts, reasons = [row | {"source": "chat"}], [], []
    for names, scorer in scorers.items():
        try:
            scored = scorer(rows)
        except UserError as error:
            page.note(printable(f"error: {names}: {error}"))
            continue
        note = " (without the beginning)" if any(scored.truncated) else ""
        for name, (value,) in scored.values.items():
            parts.append(f"{name} " + ("(not judged)" if value is None else f"{value:+.2f}{note}"))
        reasons += [reason(name, largest(found, shown)[0]) for name, found in scored.contributions.items()]
    if gold:
        parts += [f"gold {name} {values[0]:+.2f}" for name, values in grade(*gold, rows).items()]
    return parts, reasons


def take_turn(
    policies: list[Policy],
    question: str,
    scorers: dict[str, RowScorer],
    gold: tuple[Gold, str] | None,
    args: argparse.Namespace,
) -> None:
    """Every policy's answer to a question, with its values below."""
    with new_page([policy.name for policy in policies]) as page:
        for policy in policies:
            page.begin(policy.name)
            try:
                messages, ids = fit_history(policy, question, args.max_new_tokens, page)
                row = answer(policy, messages, ids, page, args)
                values, reasons = score_answer(row, scorers, gold, page, args.explain)
                if values:
                    page.values(values)
                page.reasons(reasons)
            except UserError as error:
                page.note(printable(f"error: {error}"))
            except KeyboardInterrupt:  # before or after the answer itself
                page.note("(interrupted)")
