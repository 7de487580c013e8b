"""Records to token ids; a prompt has the same ids in supervised training, reward modeling and generation.

Chat templates are applied to text, and prompt and reply are tokenized apart: a tokenizer that merges across
their border would otherwise make the prompt that a policy is trained on differ from the prompt it later
generates from.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from utils.data.records import Message, Record
from utils.data.summaries import ReadingSummary
from utils.process.errors import UserError


class Unfit(UserError):
    """Turns that a chat template cannot write; `kind` says why for any of them, `reason` what the template says."""

    def __init__(self, message: str, kind: str, reason: str = ""):
        super().__init__(message)
        self.kind, self.reason = kind, reason


@dataclass(frozen=True)
class Encoded:
    """A record and its ids.

    Attributes:
        responses: of its replies; each ends in EOS unless it was cut.
        other_prompts: of a record with one reply to several prompts, the prompts after the first; there is a response
            for each prompt then.
    """

    record: Record
    prompt: list[int]
    responses: tuple[list[int], ...]
    other_prompts: tuple[list[int], ...] = ()

    @property
    def sequences(self) -> list[list[int]]:
        """Ids of every response after its prompt."""
        prompts = (self.prompt, *self.other_prompts) if self.other_prompts else (self.prompt,) * len(self.responses)
        return [prompt + response for prompt, response in zip(prompts, self.responses, strict=True)]

    @property
    def length(self) -> int:
        """Tokens of the longest prompt and response."""
        if self.other_prompts:
            return max(map(len, self.sequences))
        return len(self.prompt) + max(map(len, self.responses), default=0)


def data_fingerprint(examples: Iterable[Encoded]) -> str:
    """sha256 of what examples train, one after another, in hexadecimal: token ids and what their records add."""
    digest = hashlib.sha256()
    for example in examples:
        identity = example.record.identity(example.prompt, example.responses)
        identity = [identity, *example.other_prompts] if example.other_prompts else identity
        digest.update(json.dumps(identity, sort_keys=True).encode())
    return digest.hexdigest()


def set_end_ids(tokenizer: PreTrainedTokenizerBase, configs: Sequence[Any]) -> None:
    """Note on a tokenizer every id that ends a response: its EOS and `eos_token_id` of each of the `configs`.

    Gemma's turns end in another token than its EOS, and generation_config.json alone says so. Ids of ordinary tokens do
    not count: classes of configurations have defaults, which mean another tokenizer's.
    """
    named = [tokenizer.eos_token_id]
    for config in configs:
        ids = getattr(config, "eos_token_id", None)
        named += ids if isinstance(ids, list | tuple) else [ids]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    tokenizer.end_ids = list(dict.fromkeys(i for i in named if i in special))


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a response, the tokenizer's EOS first."""
    return getattr(tokenizer, "end_ids", [tokenizer.eos_token_id])


def response_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a response's ids without what ends it and other special tokens."""
    ids = list(ids)
    return tokenizer.decode(ids[:-1] if ids and ids[-1] in end_ids(tokenizer) else ids, skip_special_tokens=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of the prompt up to where the reply begins; BOS is there if the chat template writes it.

    Raises `UserError` if the tokenizer has no chat template or the template refuses the turns.
    """
    return _tokenize(tokenizer, _prompt_text(tokenizer, messages))


def encode_response(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, finished: bool = True
) -> list[int]:
    """Ids of the reply to `messages`, ending in one EOS; `encode_prompt` + this is the whole sequence.

    A reply that is not `finished` ends where it was cut off. Raises `UserError` like `encode_prompt`, and if the
    template renders the prompt differently when a reply follows.
    """
    prompt_text = _prompt_text(tokenizer, messages)
    full_text = render_dialogue(tokenizer, messages, response, finished)
    if not full_text.startswith(prompt_text):
        kind = "the chat template renders a prompt differently once a reply follows, so the two cannot be told apart"
        raise Unfit(f"{_name(tokenizer)}: {kind}", kind)
    encode = _tokenize_to_eos if finished else _tokenize
    return encode(tokenizer, full_text.removeprefix(prompt_text))


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, finished: bool = True
) -> list[int]:
    """Ids of prompt and reply, tokenized apart, as everywhere here. Raises `UserError` like `encode_response`."""
    return encode_prompt(tokenizer, messages) + encode_response(tokenizer, messages, response, finished)


def encode_rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, finished: bool = True
) -> list[int]:
    """Ids of a dialogue as the chat template writes it, with all that follows the last turn, tokenized at once.

    Raises `UserError` like `encode_prompt`.
    """
    return _tokenize(tokenizer, render_dialogue(tokenizer, messages, response, finished))


def encode_whole(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, finished: bool = True
) -> list[int]:
    """Ids of a dialogue as one text between the special tokens that the tokenizer puts around every text.

    These are CLS and SEP of an encoder; where the chat template writes them itself, they are not doubled. Raises
    `UserError` like `encode_prompt`.
    """
    ids = tokenizer(render_dialogue(tokenizer, messages, response, finished))["input_ids"]
    if ids[:1] == ids[1:2] and ids[0] in tokenizer.all_special_ids:
        ids = ids[1:]
    if len(ids) > 1 and ids[-1] == ids[-2] and ids[-1] in tokenizer.all_special_ids:
        ids = ids[:-1]
    return ids


def render_dialogue(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, finished: bool = True
) -> str:
    """Text of prompt and reply as the chat template writes it; of a reply cut off, up to there.

    Raises `UserError` like `encode_prompt`.
    """
    if finished:
        return _render(tokenizer, _with_reply(messages, response))
    if response.strip():
        try:
            return _render(tokenizer, _with_reply(messages, response), continue_final_message=True)
        except Unfit:  # some templates rewrite replies, such as Qwen3's with thoughts
            pass
    return _prompt_text(tokenizer, messages) + response  # as a policy continues a prompt


def fit_lengths(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    summary: ReadingSummary,
    overlong: str = "error",
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    unfit: str = "error",
    embedding_rows: int | None = None,
) -> list[Encoded]:
    """Encodes records and enforces the lengths given; counts what it drops or cuts in `summary.encoding`.

    A prompt of more than `max_prompt_length` tokens (without it: one that leaves no room for a reply in
    `max_length`) raises `UserError` with its place, or is dropped, as `overlong` says. So does, as `unfit` says, an
    example that the chat template cannot write. Replies are cut so that prompt and reply have at most `max_length`
    tokens; records whose replies the cut makes equal are dropped. Also raises `UserError` if an example holds an id
    that is not among the model's `embedding_rows`, and if nothing is left.
    """
    if max_prompt_length is not None and max_length is not None and max_prompt_length >= max_length:
        raise UserError(
            f"--max_prompt_length {max_prompt_length} leaves no room for a reply in --max_length {max_length}"
        )
    writer = Writer(tokenizer, unfit)
    encoded = _fitting_prompts(writer, records, summary, overlong, max_prompt_length, max_length)
    fitted, cut, equal = [], 0, Counter()
    for record, prompts in encoded:
        if (whole := writer.replies(record)) is None:
            continue
        room = None if max_length is None else max_length - max(map(len, prompts))
        responses = tuple(ids[:room] for ids in whole)
        example = Encoded(record, prompts[0], responses, tuple(prompts[1:]))
        if len(responses) > 1 and all(ids == example.sequences[0] for ids in example.sequences):
            equal[f"{record.PLURAL} dropped: equal once encoded and cut"] += 1
            continue
        cut += sum(len(short) < len(ids) for short, ids in zip(responses, whole, strict=True))
        fitted.append(example)
    summary.encoding += writer.dropped() + equal
    if cut:
        summary.encoding[f"replies cut so that prompt and reply have {max_length} tokens"] += cut
    if not fitted:
        raise UserError(f"nothing is left of {len(records)} examples: {'; '.join(summary.lines())}")
    if embedding_rows is not None:
        _check_ids(tokenizer, fitted, embedding_rows)
    return fitted


def _fitting_prompts(
    writer: "Writer",
    records: Sequence[Record],
    summary: ReadingSummary,
    overlong: str,
    max_prompt_length: int | None,
    max_length: int | None,
) -> list[tuple[Record, list[list[int]]]]:
    """The records whose prompts can be written and fit, with the ids of their prompts."""
    written = ((record, writer.prompts(record)) for record in records)
    encoded = [(record, ids) for record, ids in written if ids is not None]
    if max_prompt_length is not None:
        limit, flag = max_prompt_length, f"longer than --max_prompt_length {max_prompt_length}"
    elif max_length is not None:
        limit, flag = max_length - 1, f"too long to leave room for a reply in --max_length {max_length}"
    else:
        return encoded
    lengths = [max(map(len, prompts)) for _, prompts in encoded]
    long = [(record, length) for (record, _), length in zip(encoded, lengths, strict=True) if length > limit]
    if long and overlong == "error":
        record, length = max(long, key=lambda item: item[1])
        raise UserError(
            f"{record.source}: prompt of {length} tokens is {flag} "
            f"({len(long)} such prompts; raise the flag or pass --overlong drop)"
        )
    if long:
        summary.encoding[f"prompts dropped: {flag}"] += len(long)
    return [found for found, length in zip(encoded, lengths, strict=True) if length <= limit]


class Writer:
    """Encodes records one by one. What the chat template cannot write raises `UserError` with its place, or, with
    `unfit` "drop", becomes None and is counted."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, unfit: str):
        self.tokenizer, self.unfit = tokenizer, unfit
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # {kind: place and reason of its first example}

    def prompts(self, record: Record) -> list[list[int]] | None:
        """Ids of each prompt."""
        return self._attempt(record, lambda: [encode_prompt(self.tokenizer, messages) for messages in record.prompts])

    def replies(self, record: Record) -> list[list[int]] | None:
        """Ids of each reply to each prompt."""
        pairs = itertools.product(record.prompts, record.replies)
        return self._attempt(record, lambda: [encode_response(self.tokenizer, *pair) for pair in pairs])

    def rendered(self, record: Record) -> list[list[int]] | None:
        """Ids of the dialogue with each reply, as the chat template writes it; see `encode_rendered`."""
        return self._attempt(
            record, lambda: [encode_rendered(self.tokenizer, record.messages, text) for text in record.replies]
        )

    def dropped(self) -> Counter[str]:
        """How many were dropped, by reason; the first of each is named."""
        return Counter({f"examples dropped: {kind} (first: {self.first[kind]})": n for kind, n in self.counts.items()})

    def _attempt(self, record: Record, encode: Callable[[], Any]) -> Any:
        try:
            return encode()
        except Unfit as error:
            if self.unfit == "error":
                raise UserError(f"{record.source}: {error} (--unfit drop leaves such examples out)") from error
            self.counts[error.kind] += 1
            self.first.setdefault(error.kind, f"{record.source}{error.reason and ': ' + error.reason}")
        except UserError as error:
            raise UserError(f"{record.source}: {error}") from error
        return None


def _check_ids(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded], rows: int) -> None:
    """Raises `UserError` for an example with an id that has no row in the embedding."""
    for example in encoded:
        parts = (example.prompt, *example.responses, *example.other_prompts)
        largest = max(max(ids, default=0) for ids in parts)
        if largest >= rows:
            raise UserError(
                f"{example.record.source}: holds the token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}),"
                f" for which the model has no embedding ({rows} rows)"
            )


def _prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    return _render(tokenizer, list(messages), add_generation_prompt=True)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **how: bool) -> str:
    if tokenizer.chat_template is None:
        raise UserError(f"{_name(tokenizer)}: the tokenizer has no chat template")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **how)
    except Exception as error:  # a template is a program: a mistake in it may raise anything
        kind, reason = "the chat template refuses the turns", " ".join(str(error).split())[:200]
        raise Unfit(f"{_name(tokenizer)}: {kind} ({reason})", kind, reason) from error


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the tokenizer"


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _with_reply(messages: Sequence[Message], response: str) -> list[Message]:
    return [*messages, {"role": "assistant", "content": response}]


def _tokenize_to_eos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that a reply ends, up to one id that ends it: the template's, or else EOS."""
    ends = end_ids(tokenizer)
    if text.rstrip().endswith(tuple(filter(None, tokenizer.convert_ids_to_tokens(ends)))):
        text = text.rstrip()  # some templates end every turn with a line break, which no policy has to learn
    ids = _tokenize(tokenizer, text)
    return ids if ids and ids[-1] in ends else [*ids, tokenizer.eos_token_id]
