"""Talk to one or several policies in the terminal, with the objectives' values under each answer.

    python eval/chat.py --policy sft=output/tiny/sft gapo_p1=output/tiny/policies/gapo_p1 \
        --reward_model helpfulness=output/tiny/reward/helpfulness \
        --cost_model harmlessness=output/tiny/cost/harmlessness --gold utils.safe_rlhf_mini:gold_scores

Every policy has a history of its own and answers word by word, in a column of its own where the terminal is wide
enough. Values are those of eval/score.py: higher is better. Ctrl-C ends an answer, Ctrl-D or /quit the program; the
questions may also come through a pipe. --explain adds what the attributes behind a gated score contributed to it.
"""

import argparse
import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from eval.chatting.conversation import Policy, system_turns, take_turn
from eval.results.explanations import add_explain_argument, note_unexplained
from eval.results.grading import grade, load_gold
from utils.cli.arguments import Parser, add_loading_arguments
from utils.cli.types import by_name, named_number, named_value, positive_int, seed, temperature
from utils.data.encoding import encode_prompt
from utils.models.checking import check_causal_lm, check_positions
from utils.models.configs import DTYPES, allow, load_tokenizer
from utils.models.loading import load_causal_lm
from utils.process.distributed import device
from utils.process.errors import UserError, run_main
from utils.process.plain_text import printable
from utils.scoring.objectives import Objective, add_score_arguments, are_given, by_source, named_objectives
from utils.scoring.scorers import RowScorer, load_row_scorer
from utils.steering.arguments import add_direction_argument, direction_of

HELP = """\
/reset     forget the conversation
/policies  the policies and where they come from
/direction NAME=W ...  where to steered policies go from here on; without weights, where they go now
/help      this list
/quit      end (also Ctrl-D); Ctrl-C ends an answer"""


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
    add_direction_argument(parser)
    add_score_arguments(parser)
    parser.add_argument("--gold", metavar="MODULE:FUNCTION", help="(prompts, responses) -> {objective: values}")
    add_explain_argument(parser)
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
            *direction_of(path, f"--policy {name}", args.direction),
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
        direction_of(path, flag, args.direction)
        if args.system is not None:
            check_system(path, flag, args)


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
    """What scores answers, if anything does, by the names of its objectives; a model that they share is there once."""
    explain = bool(args.explain)
    return {
        ", ".join(objective.name for objective in group): load_row_scorer(group, DTYPES[args.dtype], 1, explain)
        for group in by_source(objectives)
    }


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
                goes = f", {policy.direction.said()}" if policy.direction else ""
                print(f"{policy.name}: {policy.path}, {len(policy.history) // 2} exchanges{goes}")
        case "/help":
            print(HELP)
        case _ if command.split()[0] == "/direction":
            steer_policies(command.split()[1:], policies)
        case _:
            print(f"{command}: no such command (/help lists them)")
    return True


def steer_policies(words: list[str], policies: list[Policy]) -> None:
    """Take weights as a new direction of the policies that are steered, and say where each goes."""
    steered = [policy for policy in policies if policy.steering]
    try:
        weights = by_name("/direction", [named_number(word) for word in words])
        found = [policy.steering.direction(weights, "/direction") if words else policy.direction for policy in steered]
    except (UserError, argparse.ArgumentTypeError) as error:
        print(error)
        return
    for policy, direction in zip(steered, found, strict=True):
        policy.direction = direction
        print(f"{policy.name}: {direction.said() if direction else 'no direction'}")
    if not steered:
        print("no policy here is steered by a direction (step3_dpa makes them)")


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
    note_unexplained(objectives, args.explain)
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
