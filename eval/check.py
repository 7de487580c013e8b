"""Check the commands of an evaluation that is still to come: flags, judges' settings, tasks, the test prompts.

    python eval/check.py "eval/generate.py --policy sft=output/sft ..." "eval/judge.py ..."

Policies and responses need not be there yet; the reference model's configuration and tokenizer do, for the prompts. No
weight is read, nothing is written. All that is wrong is listed, a line each.
"""

import gc
import shlex
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eval import generate, judge, score
from utils.cli.arguments import Parser
from utils.data import load_prompts
from utils.models.configs import load_tokenizer
from utils.process.errors import EXIT_BAD_INPUT, Problems, run_main
from utils.scoring.judges import judges_of
from utils.scoring.objectives import FLAGS
from utils.scoring.tasks import read_tasks


def main() -> None:
    parser = Parser(description="Check the commands of an evaluation that is still to come")
    parser.add_argument("--no_prompts", action="store_true", help="the test prompts are still to be made, too")
    parser.add_argument("commands", nargs="+", metavar="COMMAND", help="script of eval/ and its flags, as one word")
    args = parser.parse_args()
    problems, refused = Problems(collecting=True), False
    checks = {
        "eval/generate.py": lambda: check_generate(problems, prompts=not args.no_prompts),
        "eval/score.py": lambda: check_score(problems),
        "eval/judge.py": lambda: check_judge(problems),
    }
    for command in args.commands:
        sys.argv = shlex.split(command)
        try:
            checks[sys.argv[0]]()
        except SystemExit:  # its parser has said why
            refused = True
    problems.report()
    if refused:
        sys.exit(EXIT_BAD_INPUT)


def check_generate(problems: Problems, prompts: bool) -> None:
    """Its flags; of the test prompts, which `prompts` are there, format, template and length."""
    args = generate.parse_args()
    if not prompts:
        return
    tokenizer = problems.take(load_tokenizer, args.reference_model, "--reference_model")
    if tokenizer is None:
        problems.take(load_prompts, args.data, args.seed)
    else:
        problems.take(generate.load_test_prompts, args, tokenizer, args.reference_model, "--reference_model")


def check_score(problems: Problems) -> None:
    """Its flags; judges and tasks, but for what models say of them."""
    args = score.parse_args()
    names = [name for flag in FLAGS.values() for name, _ in getattr(args, flag)]
    judges_of(args, names, problems)
    if args.tasks:
        problems.take(read_tasks, args.tasks, names, [name for name, _ in (*args.judge, *args.judge_model)])


def check_judge(problems: Problems) -> None:
    """Its flags; of a language model, that there are criteria for every objective and an address."""
    args = judge.parse_args()
    problems.take(judge.check_names, args)
    if not args.gold:
        problems.take(judge.find_criteria, args)
        problems.take(judge.make_endpoint, args)


if __name__ == "__main__":
    run_main(main)
