"""The responses that a judge compares: read from a file, or generated, and which prompts count for which objective."""

import argparse
from pathlib import Path

from eval.generate import Answers, is_current, load_test_prompts, settings_of
from eval.partial import partial_path
from eval.score import Row, read_rows
from utils.data import load_prompts
from utils.data.loading import conversation_key
from utils.distributed import device
from utils.errors import UserError
from utils.metrics import Progress
from utils.models import DTYPES, check_causal_lm, load_causal_lm, load_tokenizer

FIELDS = {"prompt", "messages", "source", "response"}
Responses = dict[tuple, Row]  # by conversation, in the order of the prompts


def check_source(path: str, flag: str, data: str | None) -> None:
    """Whether responses can be had from `path`, before anything is generated.

    Raises:
        UserError: neither a file of responses nor a policy, or a policy without prompts to answer.
    """
    if path.endswith(".jsonl"):
        read_rows(Path(path), flag, FIELDS)
        return
    check_causal_lm(path, flag)
    if data is None:
        raise UserError(f"--data: needed, because {flag} {path} is a model, which has to answer prompts")


def load_responses(name: str, path: str, flag: str, args: argparse.Namespace) -> Responses:
    """The responses of one policy: those of a file of eval/generate.py, or those of a model to --data."""
    rows = read_rows(Path(path), flag, FIELDS) if path.endswith(".jsonl") else generate_rows(name, path, flag, args)
    return {conversation_key(row["messages"]): row for row in rows}


def generate_rows(name: str, path: str, flag: str, args: argparse.Namespace) -> list[Row]:
    """Sample responses to --data and keep them in <output_dir>/responses, where a second run finds them."""
    tokenizer = load_tokenizer(path, flag)
    prompts = load_test_prompts(args, tokenizer, path, flag)
    file = Path(args.output_dir) / "responses" / f"{name}.jsonl"
    settings = settings_of(args, path, flag, prompts)
    if not args.overwrite and is_current(file, prompts, settings):
        partial_path(file).unlink(missing_ok=True)
        print(f"{name}: {file} is complete, kept (--overwrite generates it again)", flush=True)
        return read_rows(file, flag, FIELDS)
    answers = Answers(file, settings)
    policy = load_causal_lm(path, flag, DTYPES[args.dtype]).to(device()).eval()
    progress = Progress(len(prompts), f"generate {name}", every=1, done_before=len(answers.rows))
    for _ in answers.generate(policy, None, prompts, tokenizer, args):
        progress.update(len(answers.rows))
    return answers.write()


def select_prompts(spec: str, flag: str, known: Responses) -> set[tuple]:
    """Conversations of a prompt file to which there are responses; says so if it is not all of them.

    Raises:
        UserError: there is none.
    """
    prompts, _ = load_prompts(spec)
    wanted = {conversation_key(prompt.messages) for prompt in prompts}
    if not (found := wanted & known.keys()):
        raise UserError(f"{flag}: the baseline has a response to none of its {len(wanted)} prompts")
    if len(found) < len(wanted):
        print(f"{flag}: the baseline has responses to {len(found)} of {len(wanted)} prompts", flush=True)
    return found


def check_answered(conversations: list[tuple], responses: Responses, baseline: Responses, flag: str) -> None:
    """Raises: UserError: the policy has no response to a prompt that is compared."""
    if missing := [key for key in conversations if key not in responses]:
        raise UserError(
            f"{flag}: no response to {len(missing)} of {len(conversations)} prompts that the baseline answered"
            f" (the first is {baseline[missing[0]]['source']})"
        )
