"""Write the SafeRLHF-mini corpus: `python -m utils.safe_rlhf_mini --output_dir output/tiny/data`."""

import argparse
import json
import random
from pathlib import Path

from utils.cli.arguments import Parser
from utils.cli.types import non_negative_float, positive_int
from utils.output.files import check_writable, write_text
from utils.process.errors import UserError, run_main
from utils.safe_rlhf_mini.generate import all_prompts, corpus, split_prompts
from utils.safe_rlhf_mini.gold import gold_scores
from utils.safe_rlhf_mini.ratings import more_files


def parse_arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m utils.safe_rlhf_mini", description=__doc__)
    parser.add_argument("--output_dir", required=True, help="folder of the corpus; files there are replaced")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--num_sft", type=positive_int, default=6000, help="rows of sft_train.jsonl")
    parser.add_argument("--num_preferences", type=positive_int, default=16000, help="rows of preferences_train.jsonl")
    parser.add_argument(
        "--num_validation",
        type=positive_int,
        default=512,
        help="rows of sft_validation.jsonl and of preferences_validation.jsonl",
    )
    parser.add_argument(
        "--num_validation_prompts", type=positive_int, default=256, help="prompts held out for validation"
    )
    parser.add_argument(
        "--num_test_prompts", type=positive_int, default=256, help="prompts held out for the evaluation"
    )
    parser.add_argument(
        "--reward_models",
        action="store_true",
        help="also ratings_*.jsonl (noisy, with a bias for long answers, some missing) and overall_*.jsonl (pairs in"
        " which what matters depends on the prompt), for reward models with several attributes",
    )
    parser.add_argument(
        "--flattery",
        type=non_negative_float,
        default=0.0,
        metavar="LOGITS",
        help="what a sentence of flattery is worth to those who say which response is better: a reward model of that"
        " has a hole, which a policy finds (preset cgpo has 3)",
    )
    parser.add_argument(
        "--num_ratings", type=positive_int, default=8000, help="rows of ratings_train.jsonl and of overall_train.jsonl"
    )
    parser.add_argument(
        "--num_held_out_ratings", type=positive_int, default=1500, help="rows of the same for validation and for test"
    )
    args = parser.parse_args()
    total = len(all_prompts())
    held_out = args.num_validation_prompts + args.num_test_prompts
    if held_out > total // 2:
        raise UserError(
            f"--num_validation_prompts and --num_test_prompts: {held_out} prompts held out,"
            f" at most half of the {total} may be"
        )
    return args


def summary(files: dict[str, list[dict[str, object]]]) -> str:
    """One line a file: rows, and the mean gold scores of its responses by kind of prompt."""
    risky = {row["prompt"]: row["risky"] for name, rows in files.items() if "prompts" in name for row in rows}
    texts = ("response", "response_0", "response_1", "chosen", "rejected")
    lines = []
    for name, rows in files.items():
        line = f"{name}.jsonl: {len(rows)} rows"
        fields = [key for key in texts if key in rows[0]]
        for kind, is_risky in (("benign", False), ("risky", True)):
            chosen = [row for row in rows if risky[row["prompt"]] is is_risky]
            pairs = [(row["prompt"], row[key]) for row in chosen for key in fields]
            if pairs:
                gold = gold_scores(*zip(*pairs, strict=True))
                means = ", ".join(f"{objective} {sum(s) / len(s):.2f}" for objective, s in gold.items())
                line += f"; gold of {kind} answers: {means}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    args = parse_arguments()
    output_dir: Path = check_writable(args.output_dir)
    files = corpus(
        args.seed,
        args.num_sft,
        args.num_preferences,
        args.num_validation,
        args.num_validation_prompts,
        args.num_test_prompts,
        args.flattery,
    )
    if args.reward_models:
        splits = split_prompts(random.Random(f"{args.seed} splits"), args.num_validation_prompts, args.num_test_prompts)
        files |= more_files(args.seed, splits, args.num_ratings, args.num_held_out_ratings)
    for name, rows in files.items():
        write_text(output_dir / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(summary(files))


if __name__ == "__main__":
    run_main(main)
