"""The responses that a judge compares: read from a file, or generated, and which prompts count for which objective."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from eval.results.answers import Answers, is_current, load_test_prompts, settings_of
from eval.results.partial import partial_path
from eval.results.rows import Row, read_rows
from utils.cli.arguments import check_output_file
from utils.data import load_prompts
from utils.data.encoding import Encoded
from utils.data.records import conversation_key
from utils.models.checking import check_causal_lm
from utils.models.configs import DTYPES, embedding_rows, load_tokenizer
from utils.models.loading import load_causal_lm
from utils.output.metrics import Progress
from utils.process.distributed import device
from utils.process.errors import UserError

FIELDS = {"prompt", "messages", "source", "response"}
Responses = dict[tuple, Row]  # by conversation, in the order of the prompts


@dataclass(frozen=True)
class Answered:
    """A policy whose responses are there, by conversation."""

    responses: Responses

    def places(self) -> dict[tuple, str]:
        """{conversation: where its prompt comes from}."""
        return {key: row["source"] for key, row in self.responses.items()}

    def example(self) -> Row:
        """One of its responses."""
        return next(iter(self.responses.values()))


@dataclass(frozen=True)
class Asked:
    """A policy that has to answer --data; `flag` named its folder `path`."""

    name: str
    path: str
    flag: str
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Encoded]

    def places(self) -> dict[tuple, str]:
        """As above."""
        return {conversation_key(prompt.record.messages): prompt.record.source for prompt in self.prompts}

    def example(self) -> Row:
        """A response that it could give."""
        record = self.prompts[0].record
        return {"prompt": record.messages[-1]["content"], "source": record.source, "response": "Yes."}


Source = Answered | Asked


def open_source(name: str, path: str, flag: str, args: argparse.Namespace) -> Source:
    """What responses can be had from `path`: a file of eval/generate.py, or a model. Nothing is generated yet.

    Raises:
        UserError: neither a file of responses nor a policy, or a policy without prompts that it can answer.
    """
    if path.endswith(".jsonl"):
        return Answered(by_conversation(read_rows(Path(path), flag, FIELDS)))
    rows = embedding_rows(check_causal_lm(path, flag))
    if args.data is None:
        raise UserError(f"--data: needed, because {flag} {path} is a model, which has to answer prompts")
    check_output_file(responses_file(name, args))
    tokenizer = load_tokenizer(path, flag)
    return Asked(name, path, flag, tokenizer, load_test_prompts(args, tokenizer, path, flag, rows))


def get_responses(source: Source, args: argparse.Namespace) -> Responses:
    """The responses of one policy, generated if need be."""
    return source.responses if isinstance(source, Answered) else by_conversation(generate_rows(source, args))


def by_conversation(rows: list[Row]) -> Responses:
    return {conversation_key(row["messages"]): row for row in rows}


def responses_file(name: str, args: argparse.Namespace) -> Path:
    return Path(args.output_dir) / "responses" / f"{name}.jsonl"


def generate_rows(asked: Asked, args: argparse.Namespace) -> list[Row]:
    """Sample responses to --data and keep them in <output_dir>/responses, where a second run finds them."""
    file = responses_file(asked.name, args)
    settings = settings_of(args, asked.path, asked.flag, asked.prompts)
    if not args.overwrite and is_current(file, asked.prompts, settings):
        partial_path(file).unlink(missing_ok=True)
        print(f"{asked.name}: {file} is complete, kept (--overwrite generates it again)", flush=True)
        return read_rows(file, asked.flag, FIELDS)
    answers = Answers(file, settings, len(asked.prompts))
    policy = load_causal_lm(asked.path, asked.flag, DTYPES[args.dtype]).to(device()).eval()
    progress = Progress(len(asked.prompts), f"generate {asked.name}", every=1, done_before=len(answers.rows))
    for _ in answers.generate(policy, None, asked.prompts, asked.tokenizer, args):
        progress.update(len(answers.rows))
    return answers.write()


def read_prompts(spec: str) -> set[tuple]:
    """The conversations of a prompt file."""
    prompts, _ = load_prompts(spec)
    return {conversation_key(prompt.messages) for prompt in prompts}


def select_prompts(wanted: set[tuple], flag: str, known: Mapping[tuple, str]) -> set[tuple]:
    """Those of the prompts that `flag` named to which there are responses; says so if it is not all of them.

    Raises:
        UserError: there is none.
    """
    if not (found := wanted & known.keys()):
        raise UserError(f"{flag}: the baseline has a response to none of its {len(wanted)} prompts")
    if len(found) < len(wanted):
        print(f"{flag}: the baseline has responses to {len(found)} of {len(wanted)} prompts", flush=True)
    return found


def check_answered(
    conversations: list[tuple], answered: Mapping[tuple, str], baseline: Mapping[tuple, str], flag: str
) -> None:
    """Raises: UserError: the policy has no response to a prompt that is compared; `Source.places` of both."""
    if missing := [key for key in conversations if key not in answered]:
        raise UserError(
            f"{flag}: no response to {len(missing)} of {len(conversations)} prompts that the baseline answered"
            f" (the first is {baseline[missing[0]]})"
        )
