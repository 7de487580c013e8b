"""Talk to one or several policies in the terminal, with the objectives' values under each answer.

    python eval/chat.py --policy sft=output/tiny/sft gapo_p1=output/tiny/policies/gapo_p1 \
        --reward_model helpfulness=output/tiny/reward/helpfulness \
        --cost_model harmlessness=output/tiny/cost/harmlessness --gold utils.safe_rlhf_mini:gold_scores

Every policy has a history of its own and answers word by word, in a column of its own where the terminal is wide
enough. Values are those of eval/score.py: higher is better. Ctrl-C ends an answer, Ctrl-D or /quit the program; the
questions may also come through a pipe.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from eval.chatting.page import Columns, Lines, new_page
from eval.results.grading import Gold, grade, load_gold
from eval.results.rows import Row
from utils.cli.arguments import Parser, add_loading_arguments, named_value, positive_int, seed, temperature
from utils.data.encoding import encode_prompt, end_ids, response_text
from utils.data.records import Message
from utils.models.loading import (
    DTYPES,
    allow,
    check_causal_lm,
    check_positions,
    load_causal_lm,
    load_tokenizer,
    positions_of,
    sampling_config,
)
from utils.process.distributed import device, seed_everything
from utils.process.errors import UserError, run_main
from utils.process.plain_text import printable
from utils.scoring.objectives import Objective, add_score_arguments, are_given, named_objectives
from utils.scoring.scorers import RowScorer, load_row_scorer

HELP = """\
/reset     forget the conversation
/policies  the policies and where they come from
/help      this list
/quit      end (also Ctrl-D); Ctrl-C ends an answer"""


@dataclass
class Policy:
    """A policy and its side of the conversation.

    Attributes:
        system: what every conversation begins with: a system turn, or nothing.
        history: begins with it and, between two questions, ends with an answer.
    """

    name: str
    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    system: list[Message]
    history: list[Message] = field(init=False)

    def __post_init__(self):
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.history = [*self.system]


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


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Talk to policies in the terminal")
    parser.add_argument(
        "--policy",
        type=named_value,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME=PATH",
        help="name and model folder; several answer one after the other",
    )
    add_score_arguments(parser)
    parser.add_argument("--gold", metavar="MODULE:FUNCTION", help="(prompts, responses) -> {objective: values}")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--temperature", type=temperature, default=1.0, help="sampling temperature")
    choice.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--max_new_tokens", type=positive_int, default=256, help="tokens of an answer")
    parser.add_argument(
        "--system", type=turn, metavar="TEXT", help="a system turn that every conversation begins with; kept on /reset"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision of the models")
    parser.add_argument("--seed", type=seed, default=42, help="the same questions get the same answers")
    add_loading_arguments(parser)
    args = parser.parse_args()
    allow(args)
    return args


def turn(text: str) -> str:
    """argparse type of what a turn says."""
    if not text.strip() or printable(text) != text:
        raise argparse.ArgumentTypeError("the text is empty, or holds control characters")
    return text


def load_policies(args: argparse.Namespace) -> list[Policy]:
    """The policies that `check_policies` found well."""
    return [
        Policy(
            name,
            path,
            load_causal_lm(path, f"--policy {name}", DTYPES[args.dtype]).to(device()).eval(),
            load_tokenizer(path, f"--policy {name}"),
            system_turns(args),
        )
        for name, path in args.policy
    ]


def check_policies(args: argparse.Namespace) -> None:
    """Raises: UserError: a name given twice, no policy there, one without room for an answer or for a system turn."""
    names = [name for name, _ in args.policy]
    for name, path in args.policy:
        flag = f"--policy {name}"
        if names.count(name) > 1:
            raise UserError(f"{flag}: given twice")
        check_causal_lm(path, flag)
        check_positions(path, flag, args.max_new_tokens + 1, f"--max_new_tokens {args.max_new_tokens} and a prompt")
        if args.system is not None:
            check_system(path, flag, args)


def system_turns(args: argparse.Namespace) -> list[Message]:
    """What every history begins with."""
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def check_system(path: str, flag: str, args: argparse.Namespace) -> None:
    """Raises: UserError: the chat template refuses a system turn or leaves it out, or there is no room for it."""
    tokenizer, question = load_tokenizer(path, flag), {"role": "user", "content": "?"}
    try:
        ids = encode_prompt(tokenizer, [*system_turns(args), question])
    except UserError as error:
        encode_prompt(tokenizer, [question])  # a template that refuses everything is no matter of --system
        raise UserError(f"--system: {flag} {error}") from None
    if ids == encode_prompt(tokenizer, [question]):
        raise UserError(f"--system: {flag} {path}: the chat template leaves it out")
    check_positions(path, flag, args.max_new_tokens + len(ids), "--max_new_tokens, --system and a question")


def load_scorers(objectives: list[Objective], args: argparse.Namespace) -> dict[str, RowScorer]:
    """What scores answers, by objective, if anything does."""
    return {objective.name: load_row_scorer(objective, DTYPES[args.dtype], 1) for objective in objectives}


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
    ids = encode_prompt(policy.tokenizer, messages)
    while room is not None and len(ids) > room:
        if len(messages) < first + 3:
            what = "the system turn and the question have" if policy.system else "the question has"
            raise UserError(f"{what} {len(ids)} tokens, there is room for {room}")
        messages, dropped = [*policy.system, *messages[first + 2 :]], dropped + 1
        ids = encode_prompt(policy.tokenizer, messages)
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
    row: Row, scorers: dict[str, RowScorer], gold: tuple[Gold, str] | None, page: Lines | Columns
) -> list[str]:
    """'objective value' for every objective and for the gold scores, whose function is given with its name.

    An objective that cannot be scored, such as one whose model's template knows no system turns, gets a note.
    """
    rows, parts = [row | {"source": "chat"}], []
    for name, scorer in scorers.items():
        try:
            (value,), truncated = scorer(rows)
        except UserError as error:
            page.note(printable(f"error: {name}: {error}"))
            continue
        parts.append(f"{name} {value:+.2f}" + (" (without the beginning)" if truncated else ""))
    if gold:
        parts += [f"gold {name} {values[0]:+.2f}" for name, values in grade(*gold, rows).items()]
    return parts


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
                if values := score_answer(row, scorers, gold, page):
                    page.values(values)
            except UserError as error:
                page.note(printable(f"error: {error}"))
            except KeyboardInterrupt:  # before or after the answer itself
                page.note("(interrupted)")


def obey(command: str, policies: list[Policy]) -> bool:
    """Carry out a command; whether the program goes on."""
    match command:
        case "/quit":
            return False
        case "/reset":
            for policy in policies:
                policy.forget()
            print("the conversation is forgotten")
        case "/policies":
            for policy in policies:
                print(f"{policy.name}: {policy.path}, {len(policy.history) // 2} exchanges")
        case "/help":
            print(HELP)
        case _:
            print(f"{command}: no such command (/help lists them)")
    return True


def read_line() -> str | None:
    """What the user says next; None at the end of the input."""
    while True:
        try:
            line = input("\nyou> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D ends)")
            continue
        if not sys.stdin.isatty():
            print(line)  # a terminal shows what is typed, a pipe does not
        if line:
            return line


def main() -> None:
    args = parse_args()
    objectives = named_objectives(args) if are_given(args) else []
    check_policies(args)
    gold = (load_gold(args.gold), args.gold) if args.gold else None
    if gold:
        grade(*gold, [{"prompt": "How are you?", "response": "Fine.", "source": "a greeting"}])
    scorers, policies = load_scorers(objectives, args), load_policies(args)
    if sys.stdin.isatty():
        import readline  # noqa: F401  (line editing and history for `input`)
    sys.stdin.reconfigure(errors="replace")
    print(f"{', '.join(policy.name for policy in policies)}: ask away; /help lists the commands", flush=True)
    while (line := read_line()) is not None:
        if not line.startswith("/"):
            take_turn(policies, line, scorers, gold, args)
        elif not obey(line, policies):
            return


if __name__ == "__main__":
    run_main(main)
