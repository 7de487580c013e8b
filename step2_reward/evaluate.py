"""How good reward models, cost models and functions are on held-out pairs, several of them side by side.

    python step2_reward/evaluate.py --reward_model helpfulness=output/tiny/reward/helpfulness other=their/model \
        --reward_function short=examples/reward_functions.py:conciseness --data pairs.jsonl --output_dir output/pairs

A pair is ordered rightly where the chosen response has the higher value: a model's score, a cost with its sign changed,
a function's value. A tie counts half. A pair of which a function does not judge both responses (None) is left out for
it. Every model reads the dialogues through its own tokenizer and template; of one with more tokens than it has
positions it reads the end, as in training and in eval/score.py.

Accuracies are by subset, too, where rows name one (--subset_field). Of RewardBench's subsets there are the sections and
the score of that benchmark (step2_reward/rewardbench.py). The calibration error takes a model's values for those of
Bradley and Terry: σ of a difference is the probability that the better one is chosen. Functions, and single labels of a
classifier with several, have none.

Written are evaluation.json, evaluation.md, accuracy.png and, to look at mistakes, scores.jsonl: of every pair its
place, its subset and the values of both responses.
"""

import argparse
import gc
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy

from eval.results.grading import check_values
from step2_reward.accuracy import ALL_PAIRS, accuracies, accuracy_differences, group_pairs
from step2_reward.calibration import pair_calibration
from step2_reward.evaluation_output import console_lines, page, picture
from utils.cli.arguments import Parser, add_data_argument, add_loading_arguments, check_output_file
from utils.cli.types import positive_int, seed
from utils.data.batching import evenly_spread
from utils.data.loading import load_view
from utils.data.records import conversation_key
from utils.data.registry import preference_labels
from utils.data.subsets import SubsetPair, SubsetView
from utils.data.summaries import ReadingSummary
from utils.models.configs import DTYPES, allow
from utils.output.files import check_writable, write_bytes, write_json, write_text
from utils.output.metrics import Progress
from utils.process.errors import UserError, run_main
from utils.scoring.objectives import Objective, add_score_arguments, by_source, named_objectives
from utils.scoring.scorers import Row, load_row_scorer

FILES = ("scores.jsonl", "accuracy.png", "evaluation.md", "evaluation.json")  # the last says that all are there
SUBSET_FIELD = "subset"
BATCHES_A_CALL = 4  # of dialogues; a call is followed by a line of progress


def main() -> None:
    args = parse_args()
    objectives = named_objectives(args)
    check_output(Path(args.output_dir))
    pairs, summary = read_pairs(args)
    rows, places = distinct_responses(pairs)
    for objective in objectives:
        if objective.is_function:  # what is wrong with one is known before models load
            load_row_scorer([objective])(rows[:1])
    output_dir = check_writable(args.output_dir)
    values: dict[str, numpy.ndarray] = {}
    truncated: dict[str, int] = {}
    for group in by_source(objectives):
        found, cut = score_group(group, rows, args)
        for objective in group:
            values[objective.name] = found[objective.name][places]
            truncated[objective.name] = int(cut[places].any(axis=1).sum())
    values = {objective.name: values[objective.name] for objective in objectives}
    result = evaluate(objectives, [pair.subset for pair in pairs], values, truncated, args.seed)
    rows_read = {key: summary.as_dict()[key] for key in ("read", "kept", "dropped")}
    result = {"args": vars(args), "rows": rows_read, **result}
    write_scores(output_dir / "scores.jsonl", pairs, values)
    write_bytes(output_dir / "accuracy.png", picture(result))
    write_text(output_dir / "evaluation.md", page(result))
    write_json(output_dir / "evaluation.json", result)
    print("\n".join(["", *console_lines(result), f"{output_dir}: {', '.join(FILES)}"]), flush=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="How good reward models, cost models and functions are on held-out pairs.")
    add_score_arguments(parser.add_argument_group("models and functions"))
    group = parser.add_argument_group("pairs")
    add_data_argument(group, "held-out preference pairs, or RewardBench's (allenai/reward-bench@filtered)")
    group.add_argument(
        "--preference_label",
        choices=tuple(preference_labels()),
        help="which of the data's preferences orders a pair (default: safer where there are cost models alone, else"
        " better)",
    )
    group.add_argument(
        "--subset_field",
        default=SUBSET_FIELD,
        metavar="FIELD",
        help="field of the rows by which pairs are grouped; without it they are one group",
    )
    group.add_argument(
        "--max_pairs", type=positive_int, metavar="N", help="evaluate on so many pairs at most, evenly spread"
    )
    group = parser.add_argument_group("evaluation")
    group.add_argument("--output_dir", required=True, help=f"where {', '.join(FILES)} go; older ones are replaced")
    group.add_argument("--batch_size", type=positive_int, default=64, help="dialogues at once")
    group.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision of the models")
    group.add_argument("--seed", type=seed, default=42, help="of the bootstrap, and of a fraction of --data")
    add_loading_arguments(parser)
    args = parser.parse_args(argv)
    allow(args)
    only_costs = args.cost_model and not (args.reward_model or args.reward_function)
    args.preference_label = args.preference_label or ("safer" if only_costs else "better")
    return args


def check_output(directory: Path) -> None:
    """Raises: UserError: a model is there, whose evaluation.json would be lost, or a folder in place of a file."""
    if (directory / "config.json").exists():
        raise UserError(f"--output_dir {directory}: a model is there; its own evaluation.json would be replaced")
    for name in FILES:
        check_output_file(directory / name)


def read_pairs(args: argparse.Namespace) -> tuple[list[SubsetPair], ReadingSummary]:
    """The pairs with their subsets, and what became of the rows, which is printed.

    Raises:
        UserError: see `load_view`; no row has the field that --subset_field names.
    """
    view = SubsetView(SubsetPair, args.preference_label, field=args.subset_field)
    pairs, summary = load_view(args.data, view, args.seed)
    print("\n".join(summary.lines()), flush=True)
    if args.subset_field != SUBSET_FIELD and not any(pair.subset for pair in pairs):
        raise UserError(f"--subset_field {args.subset_field}: no pair of --data {args.data} has a value there")
    return evenly_spread(pairs, args.max_pairs), summary


def distinct_responses(pairs: Sequence[SubsetPair]) -> tuple[list[Row], numpy.ndarray]:
    """Every response to a prompt once, as `load_row_scorer` takes it, and where those of the pairs are; [n, 2] int."""
    rows: list[Row] = []
    places: dict[Any, int] = {}
    found = []
    for pair in pairs:
        prompt = {"prompt": pair.messages[-1]["content"], "messages": pair.messages, "source": pair.source}
        for reply in pair.replies:
            key = conversation_key(pair.messages), reply
            if key not in places:
                places[key] = len(rows)
                rows.append(prompt | {"response": reply, "finished": True})
            found.append(places[key])
    return rows, numpy.array(found).reshape(-1, 2)


def score_group(
    group: list[Objective], rows: list[Row], args: argparse.Namespace
) -> tuple[dict[str, numpy.ndarray], numpy.ndarray]:
    """Values of the rows by objectives of one source, [rows] float64, NaN where there is no judgement, and whether a
    model had to read them without their beginning, [rows] bool.

    Raises:
        UserError: a function that fails, a dialogue that a model cannot read, or a score that is not a number.
    """
    scorer = load_row_scorer(group, DTYPES[args.dtype], args.batch_size)
    values = {objective.name: numpy.empty(len(rows)) for objective in group}
    truncated = numpy.zeros(len(rows), dtype=bool)
    # The longest first: memory that does not suffice is missed at once.
    order = sorted(range(len(rows)), key=lambda index: characters(rows[index]), reverse=True)
    size = args.batch_size * BATCHES_A_CALL
    calls = math.ceil(len(rows) / size)
    progress = Progress(calls, f"score {', '.join(values)}", calls // 5)
    for call in range(calls):
        asked = order[call * size : (call + 1) * size]
        part = [rows[index] for index in asked]
        found = scorer(part)
        truncated[asked] = found.truncated
        for objective in group:
            column = found.values[objective.name]
            check_values(part, objective.name, column, objective.flag)
            values[objective.name][asked] = numpy.array(column, dtype=float)  # None is NaN there
        progress.update(call + 1)
    return values, truncated


def characters(row: Row) -> int:
    """Length of a dialogue."""
    return len(row["response"]) + sum(len(turn["content"]) for turn in row["messages"])


def evaluate(
    objectives: Sequence[Objective],
    subsets: Sequence[str],
    values: dict[str, numpy.ndarray],
    truncated: dict[str, int],
    seed: int,
) -> dict[str, Any]:
    """The figures of the objectives on the same pairs, and by how much the first is better than each other one.

    Args:
        subsets: of every pair.
        values: of (chosen, rejected), higher is better; NaN where there is no judgement; [n, 2] of every objective.
        truncated: numbers of pairs.

    Raises:
        UserError: no objective judges both responses of any pair.
    """
    if all(numpy.isnan(columns).any(axis=1).all() for columns in values.values()):
        raise UserError("--data: no objective judges both responses of any pair")
    names, codes = group_pairs(subsets)
    progress = Progress(len(objectives), "figures", 1)
    models, differences = {}, []
    for number, objective in enumerate(objectives, start=1):
        columns, first = values[objective.name], objectives[0].name
        figures = {"kind": objective.kind, "path": objective.path, **accuracies(columns, codes, names, seed)}
        if not objective.is_function and objective.label is None:
            figures["calibration"] = pair_calibration(*columns.T, seed)
        models[objective.name] = figures | {"truncated": truncated[objective.name]}
        if number > 1:
            averages = accuracy_differences(values[first], columns, codes, names, seed)
            pairs = averages[ALL_PAIRS]["count"] if averages else 0
            differences.append({"model": first, "other": objective.name, "pairs": pairs, "averages": averages})
        progress.update(number)
    sizes = dict(zip(names, numpy.bincount(codes).tolist(), strict=True))
    return {"pairs": len(subsets), "subsets": sizes, "models": models, "differences": differences}


def write_scores(path: Path, pairs: Sequence[SubsetPair], values: dict[str, numpy.ndarray]) -> None:
    """One line a pair: its place, its subset and the values of both responses by objective, null where not judged."""
    lines = []
    for index, pair in enumerate(pairs):
        both = {name: [None if math.isnan(value) else value for value in columns[index].tolist()]
                for name, columns in values.items()}  # fmt: skip
        scores = {name: dict(zip(pair.REPLIES, found, strict=True)) for name, found in both.items()}
        lines.append(json.dumps({"source": pair.source, "subset": pair.subset, "scores": scores}, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_main(main)
