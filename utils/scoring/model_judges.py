"""A language model as a judge: the probability of a positive word against that of a negative one, after a question.

Nothing is generated (CGPO, arXiv 2409.20370): the question and what it is about are one prompt, and the judge passes a
response where the words for yes have more mass at the next token than those for no.
"""

import argparse
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import StrictUndefined, Template, TemplateError
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.cli.types import by_name, named_value
from utils.data.batching import left_pad
from utils.data.encoding import encode_prompt
from utils.data.records import Message
from utils.engines.arrival import arriving
from utils.engines.engines import Engine, engine_config, make_frozen_engine
from utils.engines.parking import park, resident
from utils.models.checking import check_causal_lm
from utils.models.configs import DTYPES, load_config, load_tokenizer, positions_of
from utils.models.fingerprint import model_facts
from utils.models.loading import load_causal_lm
from utils.policy.forward import head_output
from utils.policy.sampled import most_of_ranks
from utils.process.distributed import device
from utils.process.errors import AT_ONCE, Problems, UserError
from utils.process.rank_watch import beat
from utils.scoring.verdicts import Judge, Replies, Verdicts

WORDS = "Yes:No"
TEMPLATE = """{{ question }}

Request: {{ prompt }}

Reply: {{ response }}

Answer with {{ positive }} or {{ negative }}:"""


@dataclass(frozen=True)
class ModelJudge(Judge):
    """A language model that is asked a question about each response.

    Attributes:
        template: Jinja, with prompt (the last user turn), messages, response, question, positive and negative.
        words: the words for yes and those for no; the first of each are `positive` and `negative`.
        engine: of the model, once it is loaded; or the model itself.
        sharded: whether passes of all ranks have to meet.
        batch_size: responses at once.
    """

    name: str
    path: str
    question: str
    template: str = TEMPLATE
    words: tuple[tuple[str, ...], tuple[str, ...]] = (("Yes",), ("No",))
    engine: Engine | nn.Module | None = None
    sharded: bool = False
    batch_size: int = 1

    @property
    def flag(self) -> str:
        return f"--judge_model {self.name}"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.path, self.flag)

    @cached_property
    def positions(self) -> int | None:
        return positions_of(load_config(self.path, self.flag))

    @cached_property
    def compiled(self) -> Template:
        return Template(self.template, undefined=StrictUndefined)

    def check(self) -> None:
        """Raises: UserError: it is no language model; the template cannot be filled in; a word is not one token."""
        check_causal_lm(self.path, self.flag)
        self.text([{"role": "user", "content": "Why?"}], "Because.")
        self.word_ids()

    def facts(self) -> dict[str, str]:
        """Fingerprints of what its verdicts depend on."""
        asked = hashlib.sha256(repr((self.question, self.template, self.words)).encode()).hexdigest()
        return model_facts(self.path, self.flag) | {f"{self.flag}: question, template and words": asked}

    def text(self, messages: Sequence[Message], response: str) -> str:
        """What it is asked about a response. Raises: UserError: the template cannot be filled in."""
        (positive, *_), (negative, *_) = self.words
        values = {"question": self.question, "positive": positive, "negative": negative, "response": response}
        try:
            return self.compiled.render(prompt=messages[-1]["content"], messages=messages, **values)
        except TemplateError as error:
            raise UserError(f"--judge_template {self.name}: {error}") from None

    def encode(self, messages: Sequence[Message], response: str) -> list[int]:
        """The ids of that, as a user's turn where the model has a chat template; of more than the model has positions
        the end."""
        text, tokenizer = self.text(messages, response), self.tokenizer
        if tokenizer.chat_template:
            ids = encode_prompt(tokenizer, [{"role": "user", "content": text}])
        else:
            ids = tokenizer(text)["input_ids"]
            ids = ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids
        return ids[-(self.positions or len(ids)) :]

    def word_ids(self) -> list[list[int]]:
        """The ids of the words for yes and of those for no, each with and without a space before it, where that is one
        token.

        Raises:
            UserError: a word is none, or stands for both.
        """
        found = []
        for words in self.words:
            ids: list[int] = []
            for word in words:
                spelled = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
                own = [one[0] for one in spelled if len(one) == 1]
                if not own:
                    raise UserError(f"--judge_words {self.name}: {word!r} is not one token of {self.path}")
                ids += own
            found.append(sorted(set(ids)))
        if set(found[0]) & set(found[1]):
            raise UserError(f"--judge_words {self.name}: a token stands for yes and for no")
        return found

    def loaded(self, args: argparse.Namespace) -> "ModelJudge":
        """With its model in a frozen engine."""
        beat(f"loading the judge {self.name}")
        with arriving(engine_config(args, frozen=True)):
            model = load_causal_lm(self.path, self.flag, DTYPES[args.dtype])
        engine = make_frozen_engine(model, args)
        if args.park_frozen_models and args.zero_stage < 3:
            park(engine.module)
        size = args.per_device_train_batch_size
        return replace(self, engine=engine, sharded=args.zero_stage == 3, batch_size=size)

    def loaded_alone(self, dtype: torch.dtype, batch_size: int) -> "ModelJudge":
        model = load_causal_lm(self.path, self.flag, dtype).to(device()).eval()
        return replace(self, engine=model, batch_size=batch_size)

    @torch.no_grad()
    def probabilities(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> torch.Tensor:
        """The mass of the words for yes over that of both; [n] float32. Under ZeRO-3 call it on every rank.

        Args:
            dialogues: (messages, response) each.
        """
        tokenizer = self.tokenizer
        ids = [self.encode(*dialogue) for dialogue in dialogues]
        words = self.word_ids()
        order, found = sorted(range(len(ids)), key=lambda i: len(ids[i])), torch.zeros(len(ids), device=device())
        passes = math.ceil(len(ids) / self.batch_size)
        passes = most_of_ranks(passes) if self.sharded else passes
        for number in range(passes):
            places = order[number * self.batch_size : (number + 1) * self.batch_size]
            rows = [ids[i] for i in places] or [[tokenizer.eos_token_id]]  # for the other ranks' sake
            batch = (t.to(device()) for t in left_pad(rows, tokenizer.pad_token_id))
            logits = head_output(self.engine, *batch, 0)[:, -1].float()
            masses = torch.stack([logits[:, own].logsumexp(dim=-1) for own in words], dim=-1)
            if places:
                found[places] = masses.softmax(dim=-1)[:, 0]
        return found

    def verdicts(self, replies: Replies, scored: Mapping[str, Any], rows: Sequence[int]) -> Verdicts:
        """It passes where yes is likelier than no."""
        beat(f"asking the judge {self.name}")
        asked = replies.some(rows)
        messages = [prompt.messages for prompt in asked.prompts]
        with resident(getattr(self.engine, "module", self.engine)):
            passed = (self.probabilities(list(zip(messages, asked.responses, strict=True))) > 0.5).float()
        return Verdicts(replies.spread(passed, rows), replies.spread(torch.ones(len(rows)), rows))


def add_model_judge_arguments(group: argparse._ActionsContainer) -> None:
    """`--judge_model` and what it is asked."""
    asked = (
        "how it is asked: Jinja with question, prompt (the last turn), messages, response, positive and negative, in"
    )
    asked += " place of a plain text; a user's turn where the model has a chat template"
    for flag, metavar, what in (
        (
            "judge_model",
            "NAME=PATH",
            "a judge that is a language model: it passes where yes is likelier than no",
        ),
        ("judge_question", "NAME=TEXT", "what it is asked about a reply"),
        ("judge_template", "NAME=FILE", asked),
        ("judge_words", "NAME=YES[,...]:NO[,...]", f"words for yes and for no, each one token; {WORDS} unless given"),
    ):
        group.add_argument(
            f"--{flag}", type=named_value, nargs="+", action="extend", default=[], metavar=metavar, help=what
        )


def model_judges_of(args: argparse.Namespace, problems: Problems = AT_ONCE) -> list[ModelJudge]:
    """The judges of `--judge_model`.

    Problems: see `model_judge` and `ModelJudge.check`; a question, template or words of no such judge.
    """
    parts = ("judge_question", "judge_template", "judge_words")
    given = {part: problems.take(by_name, f"--{part}", getattr(args, part)) or {} for part in parts}
    names = [name for name, _ in args.judge_model]
    for part, values in given.items():
        for name in values:
            if name not in names:
                problems.add(f"--{part} {name}: there is no --judge_model of that name")
    found = [
        problems.take(lambda n, p: model_judge(n, p, *(values.get(n, "") for values in given.values())), name, path)
        for name, path in args.judge_model
    ]
    return [judge for judge in found if judge is not None]


def model_judge(name: str, path: str, question: str, template: str, words: str) -> ModelJudge:
    """A judge by what the flags say of it, checked.

    Raises:
        UserError: neither question nor template; an unreadable template; words of another form; see `check`.
    """
    if not question and not template:
        raise UserError(f"--judge_model {name}: --judge_question {name}=... is needed")
    text = TEMPLATE
    if template:
        try:
            text = Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"--judge_template {name}={template}: cannot be read ({error})") from None
    sides: list[Any] = [tuple(filter(None, side.split(","))) for side in (words or WORDS).split(":")]
    if len(sides) != 2 or not all(sides):
        raise UserError(f"--judge_words {name}={words}: is not YES[,...]:NO[,...]")
    judge = ModelJudge(name, path, question, text, (sides[0], sides[1]))
    judge.check()
    return judge
