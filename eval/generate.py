"""Let policies answer the test prompts: one file of responses a policy, with lengths and KL to the reference.

    python eval/generate.py --policy sft=output/tiny/sft gapo_p1=output/tiny/policies/gapo_p1 \
        --reference_model output/tiny/sft --data output/tiny/data/prompts_test.jsonl \
        --output_dir output/tiny/eval

Several policies share one process: importing and loading take longer than generating with a small model. A run that
was killed goes on after the last batch it finished, and ends in the same files.
"""

import argparse
import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import PreTrainedTokenizerBase

from eval.results.answers import Answers, add_sampling_arguments, is_current, load_test_prompts, settings_of
from eval.results.partial import partial_path
from eval.results.steered import steer
from utils.cli.arguments import Parser, add_data_arguments, add_loading_arguments, check_output_file
from utils.cli.types import named_value
from utils.data.encoding import Encoded
from utils.models.checking import check_causal_lm, check_positions
from utils.models.configs import DTYPES, allow, embedding_rows, load_tokenizer, same_tokenizer
from utils.models.loading import load_causal_lm
from utils.output.files import check_writable
from utils.output.metrics import Progress
from utils.process.distributed import device
from utils.process.errors import UserError, run_main
from utils.scoring.tasks import add_tasks_argument
from utils.steering.arguments import add_direction_argument, direction_of


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Generate the responses of policies to test prompts")
    parser.add_argument(
        "--policy",
        type=named_value,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME=PATH",
        help="run name and model folder; several after one flag, or the flag several times",
    )
    parser.add_argument("--reference_model", required=True, metavar="PATH", help="policy that the KL is measured from")
    add_data_arguments(parser, "test prompts")
    add_tasks_argument(parser, "note the task of every prompt, which a field of its row tells")
    add_direction_argument(parser)
    parser.add_argument("--output_dir", required=True, help="responses go to <output_dir>/responses/<run>.jsonl")
    add_sampling_arguments(parser)
    add_loading_arguments(parser)
    args = parser.parse_args()
    allow(args)
    return args


def check_policies(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> int:
    """Everything about the policies that can be wrong, before a model is loaded.

    Returns:
        The rows of the smallest embedding.

    Raises:
        UserError: names the policy that is given twice, is no language model or has another tokenizer than the
            reference, or a reference that is no language model.
    """
    rows = [embedding_rows(check_causal_lm(args.reference_model, "--reference_model"))]
    names = [name for name, _ in args.policy]
    for name, path in args.policy:
        flag = f"--policy {name}={path}"
        if names.count(name) > 1:
            raise UserError(f"--policy {name}: given twice")
        rows.append(embedding_rows(check_causal_lm(path, f"--policy {name}")))
        if not same_tokenizer(load_tokenizer(path, f"--policy {name}"), tokenizer):
            raise UserError(f"{flag}: its tokenizer is not that of --reference_model {args.reference_model}")
    return min(rows)


def as_asked(
    prompts: list[Encoded], name: str, path: str, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> list[Encoded]:
    """The prompts as a policy gets them: with `--direction`, if it is given.

    Raises:
        UserError: see `direction_of`.
    """
    steering, direction = direction_of(path, f"--policy {name}", args.direction)
    return steer(prompts, steering, direction, tokenizer) if direction else prompts


def generate_all(
    todo: list[tuple[str, str, list[Encoded], Answers]],
    args: argparse.Namespace,
) -> None:
    """Write the responses of every (name, policy, what it is asked, its answers)."""
    dtype = DTYPES[args.dtype]
    reference = load_causal_lm(args.reference_model, "--reference_model", dtype).to(device()).eval()
    total = sum(-(-len(prompts) // args.batch_size) for _, _, prompts, _ in todo)
    done = sum(answers.batches for *_, answers in todo)
    progress = Progress(total, "generate", every=max(1, total // 20), done_before=done)
    for name, path, prompts, answers in todo:
        policy = load_causal_lm(path, f"--policy {name}", dtype).to(device()).eval()
        tokenizer = load_tokenizer(path, f"--policy {name}")  # the reference's, but for what ends a response
        for _ in answers.generate(policy, reference, prompts, tokenizer, args):
            done += 1
            progress.update(done)
        ordered = answers.write()
        kl, length = (sum(row[key] for row in ordered) / len(ordered) for key in ("kl", "length"))
        print(f"{name}: {len(ordered)} responses · KL {kl:.2f} · length {length:.1f} · {answers.file}", flush=True)


def main() -> None:
    args = parse_args()
    tokenizer = load_tokenizer(args.reference_model, "--reference_model")
    rows = check_policies(args, tokenizer)
    prompts = load_test_prompts(args, tokenizer, args.reference_model, "--reference_model", rows)
    asked = {name: as_asked(prompts, name, path, tokenizer, args) for name, path in args.policy}
    for name, path in args.policy:
        longest = max(len(prompt.prompt) for prompt in asked[name]) + args.max_new_tokens
        check_positions(path, f"--policy {name}", longest, f"--max_new_tokens {args.max_new_tokens} and the prompts")
    folder = check_writable(Path(args.output_dir) / "responses")
    for name, _ in args.policy:
        check_output_file(folder / f"{name}.jsonl")
    todo = []
    for name, path in args.policy:
        file = folder / f"{name}.jsonl"
        settings = settings_of(args, path, f"--policy {name}", asked[name])
        if not args.overwrite and is_current(file, prompts, settings):
            partial_path(file).unlink(missing_ok=True)
            print(f"{name}: {file} is complete, skipped (--overwrite generates it again)", flush=True)
        else:
            todo.append((name, path, asked[name], Answers(file, settings, len(prompts))))
    if todo:
        generate_all(todo, args)


if __name__ == "__main__":
    run_main(main)
